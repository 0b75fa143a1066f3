use super::*;

/// Byte-level vocabulary: the 256 bytes, then the given merges of texts, then special tokens.
fn byte_level(merges: &[(&str, &str)], special: &[&str]) -> TextSection {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|b| vec![b]).collect();
    let mut list = Vec::new();
    let id = |tokens: &Vec<Vec<u8>>, text: &[u8]| tokens.iter().position(|t| t == text).unwrap() as u32;
    for (rank, (left, right)) in (0..).zip(merges) {
        let (l, r) = (id(&tokens, left.as_bytes()), id(&tokens, right.as_bytes()));
        tokens.push([left.as_bytes(), right.as_bytes()].concat());
        list.push(Merge { left: l, right: r, merged: tokens.len() as u32 - 1, rank });
    }
    let added = |(i, text): (usize, &&str)| AddedToken {
        id: (tokens.len() + i) as u32,
        text: text.to_string(),
        special: true,
        normalized: false,
        lstrip: false,
        rstrip: false,
    };
    let mut added: Vec<AddedToken> = special.iter().enumerate().map(added).collect();
    added.sort_by_key(|t| std::cmp::Reverse(t.text.len()));
    tokens.extend(special.iter().map(|s| s.as_bytes().to_vec()));
    TextSection {
        tokenizer: TokenizerData {
            merges: MergeTable::new(tokens.len(), list).unwrap(),
            vocab: Vocab::new(&tokens).unwrap(),
            byte_tokens: (0..256).collect(),
            splits: vec![SplitPattern::new(r" ?\p{L}+|\s+(?!\S)|\s+", true).unwrap()],
            added,
            ..Default::default()
        },
        bos: Some(258),
        ..Default::default()
    }
}

/// SentencePiece-style: `<unk> <s> </s>`, bytes 3..259, then characters and merged pieces.
fn sentence_piece(prefix: Prefix) -> TextSection {
    let mut tokens: Vec<Vec<u8>> = ["<unk>", "<s>", "</s>"].map(|t| t.into()).to_vec();
    tokens.extend((0..=255).map(|b| vec![b]));
    tokens.extend([" ", "a", "b", " a", "ab", " ab"].map(|t| t.into()));
    let merge = |rank, left, right, merged| Merge { left, right, merged, rank };
    let merges = vec![merge(0, 259, 260, 262), merge(1, 260, 261, 263), merge(2, 262, 261, 264)];
    let named = |id: u32, text: &str, normalized| AddedToken {
        id,
        text: text.into(),
        special: true,
        normalized,
        lstrip: false,
        rstrip: false,
    };
    TextSection {
        tokenizer: TokenizerData {
            merges: MergeTable::new(tokens.len(), merges).unwrap(),
            vocab: Vocab::new(&tokens).unwrap(),
            symbols: Symbols::Chars,
            byte_tokens: (3..259).collect(),
            unknown: Some(0),
            fuse_unknown: true,
            normalizer: Normalizer { steps: Vec::new(), space_marker: true, prefix },
            lexicon: [259, 260, 261].into_iter().collect(),
            added: vec![named(2, "</s>", false), named(1, "<s>", false)],
            strip_leading_space: true,
            ..Default::default()
        },
        bos: Some(1),
        eos: Some(2),
        frame: Frame { before: vec![1], ..Default::default() },
        stop_tokens: vec![2],
        chat_template: Some("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}".into()),
    }
}

fn open(section: &TextSection) -> Tokenizer {
    Tokenizer::from_section(&section.encode().unwrap()).unwrap()
}

#[test]
fn section_round_trips_and_refuses_damage() {
    let section = sentence_piece(Prefix::Every);
    let bytes = section.encode().unwrap();
    assert_eq!(TextSection::decode(&bytes).unwrap(), section);
    for len in 0..bytes.len() {
        assert!(TextSection::decode(&bytes[..len]).is_err(), "cut to {len}");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    let error = TextSection::decode(&longer).unwrap_err();
    assert!(error.to_string().contains("1 bytes follow the value"), "{error}");
}

#[test]
fn any_flipped_byte_gives_an_error_or_some_tokens() {
    for section in [sentence_piece(Prefix::Every), byte_level(&[("a", "b"), (" ", "ab")], &["<|end|>"])] {
        let bytes = section.encode().unwrap();
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                let Ok(tokenizer) = Tokenizer::from_section(&damaged) else { continue };
                if let Ok(ids) = tokenizer.encode("ab <s> ab\u{3b1}<|end|>", Special::Parse) {
                    tokenizer.decode(&ids);
                }
            }
        }
    }
}

#[test]
fn byte_level_merges_inside_words_only() {
    let tokenizer = open(&byte_level(&[("a", "b"), (" ", "ab"), ("b", " ")], &[]));
    assert_eq!(tokenizer.encode("ab ab", Special::AsText).unwrap(), [256, 257]);
    assert_eq!(tokenizer.encode("", Special::AsText).unwrap(), []);
    assert_eq!(tokenizer.encode("é", Special::AsText).unwrap(), [0xc3, 0xa9]);
}

#[test]
fn special_tokens_are_text_unless_asked() {
    let tokenizer = open(&byte_level(&[("a", "b")], &["<|end|>", "<|end|>>"]));
    let as_text = tokenizer.encode("ab<|end|>", Special::AsText).unwrap();
    assert!(as_text.len() > 2 && as_text.iter().all(|&id| id <= 256));
    assert_eq!(tokenizer.encode("ab<|end|>ab", Special::Parse).unwrap(), [256, 257, 256]);
    assert_eq!(tokenizer.encode("<|end|>>", Special::Parse).unwrap(), [258], "the longest wins");
    assert_eq!(tokenizer.decode(&[256, 257, 256]), "abab", "special tokens are not shown");
    let mut shown = Detokenizer::new(tokenizer).show_special(true);
    assert_eq!(shown.push(257), "<|end|>");
}

#[test]
fn strip_flags_take_white_space() {
    let mut section = byte_level(&[], &["<m>"]);
    section.tokenizer.added[0].lstrip = true;
    assert_eq!(open(&section).encode("a \n<m> b", Special::Parse).unwrap(), [97, 256, 32, 98]);
    section.tokenizer.added[0].rstrip = true;
    assert_eq!(open(&section).encode("a <m> \n b <m>", Special::Parse).unwrap(), [97, 256, 98, 256]);
}

#[test]
fn whole_words_skip_the_merges() {
    let mut section = byte_level(&[("a", "b"), ("c", "d"), ("ab", "c"), ("abc", "d")], &[]);
    assert_eq!(open(&section).encode("abcd", Special::AsText).unwrap(), [256, 257]);
    section.tokenizer.whole_words = true;
    section.tokenizer.lexicon = [259].into_iter().collect();
    assert_eq!(open(&section).encode("abcd", Special::AsText).unwrap(), [259]);
}

#[test]
fn sentence_piece_prefixes() {
    let encode = |prefix, text: &str| open(&sentence_piece(prefix)).encode(text, Special::Parse).unwrap();
    assert_eq!(encode(Prefix::None, "ab"), [263]);
    assert_eq!(encode(Prefix::Every, "ab"), [264], "' a' joins first, then ' ab'");
    assert_eq!(encode(Prefix::Every, " ab"), [259, 264]);
    assert_eq!(encode(Prefix::EveryUnlessSpace, " ab"), [264]);
    assert_eq!(encode(Prefix::Every, "<s>a</s>a"), [1, 262, 2, 262]);
    assert_eq!(encode(Prefix::FirstUnlessSpace, "a<s>a"), [262, 1, 260]);
    assert_eq!(encode(Prefix::FirstUnlessSpace, "<s>a"), [1, 260]);
    assert_eq!(encode(Prefix::None, "\u{2581}a"), [262], "the marker is a space");
}

#[test]
fn unknown_characters_fall_back_to_bytes_then_to_unknown() {
    let mut section = sentence_piece(Prefix::None);
    let encode = |section: &TextSection| open(section).encode("aééa", Special::AsText).unwrap();
    assert_eq!(encode(&section), [260, 3 + 0xc3, 3 + 0xa9, 3 + 0xc3, 3 + 0xa9, 260]);
    section.tokenizer.byte_tokens = [NO_TOKEN; 256].into_iter().collect();
    assert_eq!(encode(&section), [260, 0, 260]);
    section.tokenizer.fuse_unknown = false;
    assert_eq!(encode(&section), [260, 0, 0, 260]);
    section.tokenizer.unknown = None;
    assert_eq!(encode(&section), [260, 260]);
}

#[test]
fn normalised_tokens_match_in_normalised_text() {
    // Older Llama 2 files: `<s>` is normalised like the text, so it is found as " <s>".
    let mut section = sentence_piece(Prefix::Every);
    section.tokenizer.added[1].normalized = true;
    section.tokenizer.added[1].text = " <s>".into();
    assert_eq!(open(&section).encode("<s>a", Special::Parse).unwrap(), [1, 260]);
    assert!(!open(&section).encode("a<s>", Special::Parse).unwrap().contains(&1));
}

#[test]
fn nfc_composes() {
    let mut section = byte_level(&[], &[]);
    assert_eq!(open(&section).encode("e\u{301}", Special::AsText).unwrap(), [0x65, 0xcc, 0x81]);
    section.tokenizer.normalizer.steps.push(NormalizeStep::Nfc);
    assert_eq!(open(&section).encode("e\u{301}", Special::AsText).unwrap(), [0xc3, 0xa9]);
}

#[test]
fn leading_space_is_dropped_at_the_start_only() {
    let tokenizer = open(&sentence_piece(Prefix::Every));
    assert_eq!(tokenizer.decode(&[1, 262, 262]), "a a");
    let mut continuing = Detokenizer::continuing(tokenizer);
    assert_eq!(continuing.push(262), " a");
}

#[test]
fn streaming_equals_lossy_decoding_for_any_bytes() {
    let tokenizer = open(&byte_level(&[], &[]));
    let mut random = crate::sample::Pcg32::new(5);
    let alphabet =
        [0x61, 0x80, 0xbf, 0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0x80, 0xff, 0xed, 0xa0, 0xc0];
    for _ in 0..3000 {
        let ids: Vec<u32> =
            (0..random.next_u32() % 10).map(|_| alphabet[random.next_u32() as usize % 16]).collect();
        let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
        assert_eq!(tokenizer.decode(&ids), String::from_utf8_lossy(&bytes), "{bytes:x?}");
    }
}

#[test]
fn characters_are_never_split() {
    let mut stream = Detokenizer::new(open(&byte_level(&[], &[])));
    let pieces: Vec<String> = "é€😀".bytes().map(|b| stream.push(b.into())).collect();
    assert_eq!(pieces, ["", "é", "", "", "€", "", "", "", "😀"]);
    assert_eq!((stream.push(0xf0), stream.push(0x9f)), ("".into(), "".into()));
    assert_eq!(stream.push(0x61), "\u{fffd}a", "one mark for the torn character");
    stream.push(0xe2);
    assert_eq!((stream.finish(), stream.finish()), ("\u{fffd}".into(), "".into()));
}

#[test]
fn ids_without_a_token_give_nothing() {
    let tokenizer = open(&byte_level(&[], &[]));
    assert_eq!(tokenizer.decode(&[97, 256, u32::MAX, 98]), "ab");
    assert_eq!(tokenizer.token_bytes(256), None);
}

#[test]
fn the_section_carries_the_checkpoints_wishes() {
    let tokenizer = open(&sentence_piece(Prefix::Every));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos()), (Some(1), Some(2), true));
    assert_eq!(tokenizer.stop_tokens(), [2]);
    let template = tokenizer.chat_template().unwrap();
    let input = ChatInput::new(&[ChatMessage::new("user", "ab")]);
    assert_eq!(template.render(&input).unwrap(), "<s>ab</s>");
}

/// Words `un##able`, `!`, with `[UNK]` for the rest.
fn word_piece() -> TextSection {
    let tokens = ["[UNK]", " un", "able", " !", " able", "a"];
    TextSection {
        tokenizer: TokenizerData {
            vocab: Vocab::new(tokens).unwrap(),
            merges: MergeTable::new(tokens.len(), Vec::new()).unwrap(),
            algorithm: Algorithm::LongestMatch { max_chars: 8 },
            symbols: Symbols::Chars,
            byte_tokens: [NO_TOKEN; 256].into_iter().collect(),
            unknown: Some(0),
            normalizer: Normalizer {
                steps: vec![NormalizeStep::Lowercase],
                space_marker: false,
                prefix: Prefix::EveryWord,
            },
            splits: vec![SplitPattern::new("[!?]|[^ !?]+", false).unwrap()],
            lexicon: [3, 4, 1, 5, 2].into_iter().collect(),
            strip_leading_space: true,
            join_punctuation: true,
            ..Default::default()
        },
        ..Default::default()
    }
}

#[test]
fn word_piece_takes_the_longest_match() {
    let tokenizer = open(&word_piece());
    let encode = |text: &str| tokenizer.encode(text, Special::AsText).unwrap();
    assert_eq!(encode("Unable  able!"), [1, 2, 4, 3]);
    assert_eq!(
        encode("unx ableablea able"),
        [0, 0, 4],
        "no part of a word is kept; nine characters are too many"
    );
    assert_eq!(encode("unaa"), [1, 5, 5]);
    assert_eq!(tokenizer.decode(&[1, 2, 4, 3]), "unable able!");
}

#[test]
fn unigram_takes_the_greatest_sum() {
    let tokens = ["<unk>", "a", "b", "ab", "bc", "c", "abc"];
    let scores = [0.0, -1.0, -1.0, -1.5, -1.0, -3.0, -9.0f32];
    let section = |byte_tokens: [u32; 256]| TextSection {
        tokenizer: TokenizerData {
            vocab: Vocab::new(tokens).unwrap(),
            merges: MergeTable::new(tokens.len(), Vec::new()).unwrap(),
            algorithm: Algorithm::MostProbable {
                scores: scores.map(f32::to_bits).into_iter().collect(),
                unknown: -19.0,
            },
            symbols: Symbols::Chars,
            byte_tokens: byte_tokens.into_iter().collect(),
            unknown: Some(0),
            fuse_unknown: true,
            lexicon: [1, 3, 6, 2, 4, 5].into_iter().collect(),
            ..Default::default()
        },
        ..Default::default()
    };
    let tokenizer = open(&section([NO_TOKEN; 256]));
    let encode = |text: &str| tokenizer.encode(text, Special::AsText).unwrap();
    assert_eq!(encode("abc"), [1, 4], "a + bc is worth -2, ab + c -4.5, abc -9");
    assert_eq!(encode("ab"), [3], "-1.5 is more than -2");
    assert_eq!(encode("éxaéb"), [0, 1, 0, 2], "unknown characters that follow one another are one token");
    let with_bytes = open(&section([5; 256]));
    assert_eq!(with_bytes.encode("éa", Special::AsText).unwrap(), [5, 5, 1], "a token for each byte");
}
