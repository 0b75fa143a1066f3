//! The post-processor: which tokens go around a text.

use bessemer_runtime::text::Frame;
use serde_json::Value as Json;

use super::{steps, text};

/// The frame that the post-processor describes; `id` finds a token by its name.
pub(super) fn read(json: &Json, id: impl Fn(&str) -> Option<u32>) -> Frame {
    let framing = |step: &&Json| {
        matches!(text(step, "type"), "TemplateProcessing" | "BertProcessing" | "RobertaProcessing")
    };
    let Some(step) = steps(json, "processors").into_iter().find(framing) else { return Frame::default() };
    // `["[SEP]", 102]`
    let pair = |key: &str| -> Vec<u32> {
        let name = step.get(key).and_then(|pair| pair.get(0)).and_then(Json::as_str);
        name.and_then(&id).into_iter().collect()
    };
    match text(step, "type") {
        "BertProcessing" => Frame { before: pair("cls"), between: pair("sep"), after: pair("sep") },
        "RobertaProcessing" => {
            Frame { before: pair("cls"), between: pair("sep").repeat(2), after: pair("sep") }
        }
        _ => {
            let single = parts(step, "single", &id);
            let pair = parts(step, "pair", &id);
            let [before, after] = [single.first(), single.get(1)].map(|p| p.cloned().unwrap_or_default());
            Frame { before, between: pair.get(1).cloned().unwrap_or_default(), after }
        }
    }
}

/// The special tokens before, between and behind the texts of a template.
fn parts(step: &Json, template: &str, id: &impl Fn(&str) -> Option<u32>) -> Vec<Vec<u32>> {
    let mut parts = vec![Vec::new()];
    for piece in step.get(template).and_then(Json::as_array).into_iter().flatten() {
        let name = piece.get("SpecialToken").and_then(|token| token.get("id")).and_then(Json::as_str);
        match (name, parts.last_mut()) {
            (Some(name), Some(last)) => last.extend(id(name)),
            _ => parts.push(Vec::new()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn id(name: &str) -> Option<u32> {
        ["<s>", "</s>"].iter().position(|n| *n == name).map(|i| i as u32)
    }

    #[test]
    fn frames_of_every_kind() {
        let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let sequence = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        let template = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {
            "type": "TemplateProcessing",
            "single": [special("<s>"), sequence("A"), special("</s>")],
            "pair": [special("<s>"), sequence("A"), special("</s>"), special("<s>"), sequence("B"), special("</s>")],
        }]});
        assert_eq!(read(&template, id), Frame { before: vec![0], between: vec![1, 0], after: vec![1] });
        let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0]});
        assert_eq!(read(&roberta, id), Frame { before: vec![0], between: vec![1, 1], after: vec![1] });
        let bert = json!({"type": "BertProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0]});
        assert_eq!(read(&bert, id), Frame { before: vec![0], between: vec![1], after: vec![1] });
        assert_eq!(read(&json!({"type": "ByteLevel"}), id), Frame::default());
        assert_eq!(read(&Json::Null, id), Frame::default());
    }
}
