//! Filetests: graphs as text, what is done to them, and what comes out, in one file each.
//!
//! ```text
//! # What the file shows. A comment must not begin with a word and a colon: that is a directive.
//! # run: pass residual          or: roundtrip, verify, pipeline fused
//! # precision: int4:32          (pass, pipeline) default: source
//! # target: dense               (pass, pipeline) or floats-only, tiles; default: integers, panels
//! # activations: f32            (pass, pipeline)
//! # disable: qkv, residual      (pipeline)
//! graph canonical
//! %0 "tokens" = input {input=tokens}
//! ...
//! # expect:
//! # rewrites: residual 1
//! graph fused
//! ...
//! ```
//! A file that must fail ends with `# error: the whole message` instead of the result.
//! The folder says what runs. `BLESS=1 cargo test -p bessemer-tests --test filetests` writes what came out into the files; read the
//! difference before you commit it.

use bessemer_ir::{Graph, Layout, Op, Phase, text};
use bessemer_passes::pipeline::{self, Context, Options, PASSES, Refine};
use bessemer_passes::testing::TestTarget;
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const FOLDERS: [&str; 4] = ["roundtrip", "verify", "passes", "pipeline"];
const SEPARATOR: &str = "# expect:\n";

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests");
    let bless = std::env::var_os("BLESS").is_some_and(|v| v == "1");
    let files = match find(&root) {
        Ok(files) if !files.is_empty() => files,
        Ok(_) => panic!("no filetests in {}", root.display()),
        Err(why) => panic!("{why}"),
    };
    let mut trials: Vec<Trial> = files
        .iter()
        .map(|(name, path)| {
            let path = path.clone();
            Trial::test(name.clone(), move || check(&path, bless).map_err(Failed::from))
        })
        .collect();
    let all = files.clone();
    trials.push(Trial::test("every_pass_fires_and_refuses", move || {
        fires_and_refuses(all.values()).map_err(Failed::from)
    }));
    trials.push(Trial::test("every_op_round_trips", move || {
        every_op_round_trips(files.values()).map_err(Failed::from)
    }));
    trials.push(Trial::test("directives_are_checked", || directives_are_checked().map_err(Failed::from)));
    let mut arguments = Arguments::from_args();
    if bless {
        // The last trials read what the others write.
        arguments.test_threads = Some(1);
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Name and path of every file; anything else in the folders is an error.
fn find(root: &Path) -> Result<BTreeMap<String, PathBuf>, String> {
    let list = |folder: &Path| -> Result<Vec<PathBuf>, String> {
        let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        entries.map(|e| e.map(|e| e.path()).map_err(|e| e.to_string())).collect()
    };
    let mut files = BTreeMap::new();
    for folder in list(root)? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !FOLDERS.contains(&name.as_str()) {
            return Err(format!("{} is none of the folders {FOLDERS:?}", folder.display()));
        }
        for path in list(&folder)? {
            if path.extension().is_none_or(|e| e != "bir") {
                return Err(format!("{} is no .bir file", path.display()));
            }
            files.insert(format!("{name}/{}", path.file_stem().unwrap_or_default().to_string_lossy()), path);
        }
    }
    Ok(files)
}

enum Run {
    RoundTrip,
    Verify,
    Pass(&'static pipeline::Pass),
    Pipeline(Phase),
}

/// A parsed file.
struct FileTest {
    run: Run,
    precision: bessemer_passes::PrecisionPolicy,
    f32_activations: bool,
    target: TestTarget,
    disable: Vec<String>,
    error: Option<String>,
    /// Everything before the separator, so that line numbers in errors are those of the file.
    input: String,
    expected: Option<String>,
}

fn read(path: &Path) -> Result<FileTest, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let folder = path.parent().and_then(Path::file_name).unwrap_or_default();
    parse(&folder.to_string_lossy(), &text).map_err(|e| format!("{}: {e}", path.display()))
}

fn parse(found_in: &str, all: &str) -> Result<FileTest, String> {
    let (input, expected) = match all.split_once(SEPARATOR) {
        Some((input, expected)) => (input, Some(expected.to_string())),
        None => (all, None),
    };
    let mut directives = BTreeMap::new();
    for line in input.lines() {
        let Some((key, value)) = line.strip_prefix("# ").and_then(|l| l.split_once(": ")) else { continue };
        if !key.is_empty()
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '-')
            && directives.insert(key, value).is_some()
        {
            return Err(format!("directive `{key}` stands twice"));
        }
    }
    let mut take = |key: &str| directives.remove(key);
    let words: Vec<&str> = take("run").ok_or("has no `# run:` directive")?.split(' ').collect();
    let run = match words[..] {
        ["roundtrip"] => Run::RoundTrip,
        ["verify"] => Run::Verify,
        ["pass", name] => Run::Pass(pipeline::find(name).map_err(|e| e.to_string())?),
        ["pipeline", phase] => Run::Pipeline(phase.parse()?),
        _ => {
            return Err(format!(
                "`# run: {}` is none of: roundtrip, verify, pass NAME, pipeline PHASE",
                words.join(" ")
            ));
        }
    };
    let folder = match run {
        Run::RoundTrip => "roundtrip",
        Run::Verify => "verify",
        Run::Pass(_) => "passes",
        Run::Pipeline(_) => "pipeline",
    };
    if folder != found_in {
        return Err(format!("belongs into folder {folder}"));
    }
    let mut test = FileTest {
        run,
        precision: Default::default(),
        f32_activations: false,
        target: TestTarget::default(),
        disable: Vec::new(),
        error: take("error").map(String::from),
        input: input.into(),
        expected,
    };
    // A directive that the run does not look at stays behind and is an error below.
    if let Run::Pass(_) | Run::Pipeline(_) = test.run {
        if let Some(p) = take("precision") {
            test.precision = p.parse()?;
        }
        if let Some(a) = take("activations") {
            test.f32_activations = a == "f32";
            if a != "f32" {
                return Err(format!("`# activations: {a}`: only f32 is known"));
            }
        }
        match take("target") {
            None => {}
            Some("dense") => test.target.layout = Layout::Dense,
            Some("floats-only") => test.target.integers = false,
            Some("tiles") => test.target.tiles = true,
            Some(other) => return Err(format!("`# target: {other}` is none of: dense, floats-only, tiles")),
        }
    }
    if let Run::Pipeline(_) = test.run {
        test.disable = take("disable").map(|d| d.split(", ").map(String::from).collect()).unwrap_or_default();
    }
    match directives.pop_first() {
        Some((key, value)) => Err(format!("directive `# {key}: {value}` is unknown or has no effect here")),
        None => Ok(test),
    }
}

/// What comes out, or the message of the error.
fn execute(test: &FileTest) -> Result<String, String> {
    let mut graph = text::parse(&test.input).map_err(|e| e.to_string())?;
    let context = Context {
        target: &test.target,
        precision: test.precision,
        f32_activations: test.f32_activations,
        row_activations: false,
        refine: Refine::NONE,
    };
    let reports = match test.run {
        Run::RoundTrip | Run::Verify => return Ok(text::print(&graph)),
        Run::Pass(pass) => {
            vec![pipeline::apply(pass, &mut graph, &context).map_err(|e| e.to_string())?]
        }
        Run::Pipeline(phase) => {
            let options = Options { disable: test.disable.clone(), stop_after: Some(phase) };
            pipeline::run(&mut graph, &context, &options).map_err(|e| e.to_string())?
        }
    };
    let fired: Vec<String> =
        reports.iter().filter(|r| r.rewrites > 0).map(|r| format!("{} {}", r.pass, r.rewrites)).collect();
    let mut out = String::from("# rewrites: ");
    out.push_str(if fired.is_empty() { "none" } else { "" });
    let _ = write!(out, "{}\n{}", fired.join(", "), printed(&graph)?);
    Ok(out)
}

/// The graph as text, which must read back to the same.
fn printed(graph: &Graph) -> Result<String, String> {
    let once = text::print(graph);
    let again = text::parse(&once).map_err(|e| format!("what was printed does not parse: {e}\n{once}"))?;
    match text::print(&again) == once {
        true => Ok(once),
        false => Err(format!("what was printed reads back to another graph:\n{once}")),
    }
}

fn check(path: &Path, bless: bool) -> Result<(), String> {
    let test = read(path)?;
    let found = execute(&test);
    let expected = match (&test.run, &test.error, &test.expected) {
        (_, Some(_), Some(_)) => return Err("expects both an error and a result".into()),
        (_, Some(error), None) => Some(Err(error.clone())),
        (Run::RoundTrip, None, None) => Some(Ok(without_comments(&test.input))),
        (Run::RoundTrip, None, Some(_)) => return Err("a round trip expects its own input".into()),
        (_, None, Some(result)) => Some(Ok(result.clone())),
        (_, None, None) => None,
    };
    if expected.as_ref() == Some(&found) {
        return Ok(());
    }
    if bless && !matches!(test.run, Run::RoundTrip) {
        return write(path, &test, &found);
    }
    let show = |r: &Result<String, String>| match r {
        Ok(text) => text.clone(),
        Err(e) => format!("error: {e}\n"),
    };
    let expected = expected.map_or("nothing: run with BLESS=1\n".into(), |e| show(&e));
    Err(difference(&expected, &show(&found)))
}

fn without_comments(input: &str) -> String {
    let lines = input.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    lines.flat_map(|l| [l, "\n"]).collect()
}

fn write(path: &Path, test: &FileTest, found: &Result<String, String>) -> Result<(), String> {
    let mut lines: Vec<String> =
        test.input.lines().filter(|l| !l.starts_with("# error: ")).map(String::from).collect();
    let mut tail = String::new();
    match found {
        Ok(text) => tail = format!("{SEPARATOR}{text}"),
        Err(e) if e.contains('\n') => return Err(format!("an error of several lines: {e}")),
        // Behind the graph, so that the numbers of its lines stay.
        Err(e) => lines.push(format!("# error: {e}")),
    }
    std::fs::write(path, lines.join("\n") + "\n" + &tail).map_err(|e| e.to_string())
}

/// Both texts, marked from the first line on that differs.
fn difference(expected: &str, found: &str) -> String {
    let same = expected.lines().zip(found.lines()).take_while(|(a, b)| a == b).count();
    let mut out = format!("differs from line {} of the result on\n", same + 1);
    for (mark, text) in [('-', expected), ('+', found)] {
        for line in text.lines().skip(same) {
            let _ = writeln!(out, "{mark} {line}");
        }
    }
    out
}

/// Every pass has a file in which it rewrites and one in which it leaves the graph alone.
fn fires_and_refuses<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<(), String> {
    let mut seen: BTreeMap<&str, [u32; 2]> = PASSES.iter().map(|p| (p.name, [0, 0])).collect();
    for path in files {
        let test = read(path)?;
        if let (Run::Pass(pass), Some(expected)) = (&test.run, &test.expected) {
            let refused = expected.starts_with("# rewrites: none\n");
            seen.entry(pass.name).or_default()[usize::from(refused)] += 1;
        }
    }
    let lacking: Vec<_> =
        seen.iter().filter(|(_, counts)| counts.contains(&0)).map(|(name, _)| *name).collect();
    match lacking[..] {
        [] => Ok(()),
        _ => Err(format!("passes without a file that fires and one that refuses: {}", lacking.join(", "))),
    }
}

/// Every op of the table stands in a file of the folder `roundtrip`.
fn every_op_round_trips<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<(), String> {
    let mut text = String::new();
    for path in files {
        let test = read(path)?;
        if let Run::RoundTrip = test.run {
            text.push_str(&test.input);
        }
    }
    let used: Vec<&str> = text.lines().filter_map(|l| l.split_once(" = ")?.1.split(' ').next()).collect();
    let lacking: Vec<_> = Op::NAMES.iter().filter(|n| !used.contains(n)).copied().collect();
    match lacking[..] {
        [] => Ok(()),
        _ => Err(format!("ops without a round trip: {}", lacking.join(", "))),
    }
}

/// A directive that is misspelt, in the wrong place or without effect must not pass for a comment.
fn directives_are_checked() -> Result<(), String> {
    let cases = [
        ("passes", "graph imported\n", "has no `# run:` directive"),
        ("passes", "# run: pass qvk\n", "`qvk` is no pass"),
        ("passes", "# run: pas qkv\n", "is none of"),
        ("pipeline", "# run: pipeline fuse\n", "`fuse` is no phase"),
        ("passes", "# run: pipeline fused\n", "belongs into folder pipeline"),
        ("passes", "# run: pass qkv\n# run: pass residual\n", "stands twice"),
        ("passes", "# run: pass qkv\n# precison: int4\n", "`# precison: int4` is unknown"),
        ("passes", "# run: pass qkv\n# disable: qkv\n", "`# disable: qkv` is unknown or has no effect"),
        ("verify", "# run: verify\n# target: dense\n", "`# target: dense` is unknown or has no effect"),
        ("passes", "# run: pass qkv\n# target: sparse\n", "is none of"),
        ("passes", "# run: pass qkv\n# activations: int8\n", "only f32 is known"),
        ("passes", "# run: pass qkv\n# precision: int9\n", "`int9` is no precision"),
    ];
    for (folder, text, expected) in cases {
        match parse(folder, text) {
            Err(why) if why.contains(expected) => {}
            Err(why) => return Err(format!("{text:?}: {why}")),
            Ok(_) => return Err(format!("{text:?} is accepted")),
        }
    }
    Ok(())
}
