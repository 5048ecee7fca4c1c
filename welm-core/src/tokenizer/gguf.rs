//! The tokenizer of a GGUF file: byte-level BPE, split the way llama.cpp splits, or SentencePiece's pieces.
//!
//! For byte-level BPE a GGUF file holds tokens and merges. How text is split into words is only a name, `pre`.
//! llama.cpp has the regular expressions for each name (`src/llama-vocab.cpp`). They are repeated here, in its order:
//! each expression splits all parts that the ones before it made, both matches and the text between them. Ids equal
//! those of llama.cpp, with these exceptions:
//!
//! * Of special tokens that overlap in a text, the leftmost is taken here, and the longest there.
//! * A merge of tokens that are not in the vocabulary is an error here, and skipped there.
//! * Tokens of gpt-oss such as `<|start|>` are control tokens here if the file says so, and never there.
//! * `</s>` and other names that may be words are normal tokens here if the file says so. There they become control
//!   tokens, and are lost in HTML.
//! * Bytes that the vocabulary has no token for (SmolLM2 lacks some control characters) are an error here, and left
//!   out in silence there.
//!
//! The models `llama` (BPE by scores) and `t5` (unigram) are those of SentencePiece (`sentencepiece/`). Two things are
//! as in llama.cpp and not as in SentencePiece: control and user-defined tokens are found first, and the text after
//! such a token gets a space in front if the file wants one. Further differences from llama.cpp are:
//!
//! * The text of a control token becomes that token only where special tokens are parsed. There, merges may lead to it.
//! * `remove_extra_whitespaces` and `precompiled_charsmap` are used for both models, there only for `t5`.
//! * Control tokens of Phi-3 include all white space after them, as in transformers. There, only ASCII white space.
//! * Merges that end in an unused token are undone, as in SentencePiece.
//! * With `t5`, white space is treated as in SentencePiece. There, a text of spaces alone or with spaces in front may
//!   get other tokens. A character without a token becomes its bytes, if the file has tokens for them.

use std::collections::{HashMap, HashSet};

use super::added::AddedToken;
use super::byte_alphabet::from_byte_alphabet;
use super::bytes::{TokenBytes, byte_token, piece_bytes};
use super::piece::{Piece, PieceKind};
use super::sentencepiece::{Declared, WhiteSpace};
use super::stages::{GPT2, PreTokenizers};
use super::vocabulary::{Bpe, Vocabulary};
use crate::config::MAX_VOCAB;
use crate::error::{Error, Result};

/// The tokenizer in a GGUF file's metadata: the keys that begin with `tokenizer.ggml.`.
#[derive(Debug, Clone, Default)]
pub(crate) struct GgufVocab {
    /// `model`: `gpt2` (byte-level BPE), `llama` or `t5`.
    pub(crate) model: String,
    /// `pre`: the name of the way text is split into words. llama.cpp takes `default` for a file without it,
    /// and warns that this is wrong for most models.
    pub(crate) pre: String,
    /// `tokens`, spelled in the byte alphabet, or as SentencePiece spells them.
    pub(crate) tokens: Vec<String>,
    /// `scores`, for pieces: one for each token.
    pub(crate) scores: Vec<f32>,
    /// `merges`: two tokens with a space between them, in the order of their ranks.
    pub(crate) merges: Vec<String>,
    /// `token_type`: one for each token, or none at all.
    pub(crate) token_types: Vec<i64>,
    /// `bos_token_id`; without the key, [`GgufVocab::default_ids`].
    pub(crate) bos: Option<u32>,
    /// `eos_token_id`.
    pub(crate) eos: Option<u32>,
    /// `unknown_token_id`, for pieces; without the key, the piece whose type is unknown.
    pub(crate) unknown: Option<u32>,
    /// `add_space_prefix`, for pieces; without the key, true if `model` is `llama`.
    pub(crate) add_space_prefix: bool,
    /// `remove_extra_whitespaces`, for pieces.
    pub(crate) remove_extra_whitespaces: bool,
    /// `precompiled_charsmap`, for pieces.
    pub(crate) charsmap: Vec<u8>,
    /// Whether control tokens include the spaces after them. No key says so. llama.cpp decides by the name Phi-3.
    pub(crate) strips_after: bool,
    /// `fim_pad_token_id`, `fim_rep_token_id` and `fim_sep_token_id`, in this order.
    pub(crate) fim_ends: Vec<Option<u32>>,
    /// `add_bos_token`; without the key, [`GgufVocab::default_add_bos`].
    pub(crate) add_bos: bool,
}

/// How one or more `pre` names split text.
struct Pre {
    names: &'static [&'static str],
    splits: &'static [&'static str],
    /// Whether a word that is in the vocabulary becomes that token, even if no merges lead to it.
    whole_words: bool,
}

impl Pre {
    fn named(name: &str) -> Result<&'static Pre> {
        PRES.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
            let known = PRES.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", ");
            Error::Tokenizer(format!("unknown pre-tokenizer `{name}`; known are {known}"))
        })
    }
}

const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// Most letters that have cases, by number, because some of them look the same.
const DEEPSEEK_LLM_LETTERS: &str = r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+";
const BAILINGMOE: &str = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

/// All values of `pre` that are known, and how each splits.
const PRES: &[Pre] = &[
    Pre {
        names: &["default"],
        splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        whole_words: false,
    },
    Pre {
        names: &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
        ],
        splits: &[GPT2],
        whole_words: false,
    },
    Pre {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        splits: &[r"\p{N}", GPT2],
        whole_words: false,
    },
    Pre {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        splits: &[LLAMA3],
        whole_words: true,
    },
    Pre { names: &["glm4", "glm5"], splits: &[LLAMA3], whole_words: true },
    Pre { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], splits: &[LLAMA3], whole_words: false },
    Pre { names: &["minicpm5"], splits: &[r"\p{N}{1,3}", MINICPM5], whole_words: true },
    Pre { names: &["exaone-moe"], splits: &[EXAONE_MOE], whole_words: false },
    Pre { names: &["laguna"], splits: &[r"[^\n]+|[\n]+", QWEN2], whole_words: false },
    Pre { names: &["ufakzeka"], splits: &[UFAKZEKA], whole_words: false },
    Pre {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "stablelm2",
            "megrez",
            "hunyuan",
            "solar-open",
            "grok-2",
            "f2llmv2",
        ],
        splits: &[QWEN2],
        whole_words: false,
    },
    Pre { names: &["qwen35"], splits: &[QWEN35], whole_words: false },
    Pre { names: &["tekken"], splits: &[TEKKEN], whole_words: true },
    Pre {
        names: &["gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"],
        splits: &[GPT4O],
        whole_words: false,
    },
    Pre { names: &["bailingmoe", "bailingmoe2", "llada-moe"], splits: &[BAILINGMOE], whole_words: false },
    Pre { names: &["seed-coder"], splits: &[SEED_CODER], whole_words: false },
    Pre {
        // As below, without U+3000, which would begin the last range of the third one.
        names: &["deepseek-llm"],
        splits: &[
            r"[\r\n]",
            DEEPSEEK_LLM_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟、-。]+",
            r"\s+\z",
            r"(?:(?!\s)[一-龥ࠀ-一가-퟿])+",
            r"\p{N}+",
        ],
        whole_words: false,
    },
    Pre {
        // There are spaces between U+0800 and U+4E00, and llama.cpp never finds them in this range.
        names: &["deepseek-coder"],
        splits: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"(?:(?!\s)[一-龥ࠀ-一가-퟿])+", r"\p{N}"],
        whole_words: false,
    },
    Pre {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        splits: &[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        whole_words: false,
    },
    Pre {
        names: &["falcon"],
        splits: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
        whole_words: false,
    },
    Pre { names: &["bloom", "poro-chat", "gpt3-finnish"], splits: &[BLOOM], whole_words: false },
    Pre { names: &["viking"], splits: &[BLOOM, r"\p{N}"], whole_words: false },
];

/// Tokens that end a text or a turn. They are control tokens, although some converters give them another type.
#[rustfmt::skip]
const ENDS: &[&str] = &[
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>",
];
/// Tokens that end an infill, for padding, repository and file. If the file has the key, the names do not matter.
#[rustfmt::skip]
const FIM_ENDS: [&[&str]; 3] = [
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];
/// Other tokens that are control tokens, whatever type the file gives them: those of infilling.
#[rustfmt::skip]
const FIM: &[&str] = &[
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "<|fim_suffix|>",
    "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "<|fim_middle|>", "<fim-middle>",
    "<fim_middle>", "<｜fim▁end｜>", "<MID>",
];

/// Whether a token with this name is a control token, unless the name may be a word.
fn is_control_name(name: &str) -> bool {
    FIM_ENDS.iter().chain(&[ENDS, FIM]).any(|names| names.contains(&name))
}

/// Tokens of Phi-3 that do not include the spaces after them.
const KEEP_SPACES: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

impl GgufVocab {
    /// The tokens for the beginning and the end of a text where the file names none: llama.cpp's rule.
    pub(crate) fn default_ids(model: &str) -> [Option<u32>; 2] {
        match model {
            "llama" => [Some(1), Some(2)],
            "t5" => [None, Some(1)],
            _ => [None; 2],
        }
    }

    /// Whether a text starts with the `bos` token where the file does not say: llama.cpp's rule.
    pub(crate) fn default_add_bos(model: &str, pre: &str) -> bool {
        if model != "gpt2" {
            return model == "llama";
        }
        pre == "tekken" || PRES.iter().any(|p| p.names[0] == "llama-bpe" && p.names.contains(&pre))
    }

    /// Checks all that can be checked without the library.
    pub(super) fn validate(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::Tokenizer(reason));
        let (n, n_types) = (self.tokens.len(), self.token_types.len());
        if !["gpt2", "llama", "t5"].contains(&self.model.as_str()) {
            let expected = "the model `gpt2` (byte-level BPE), or `llama` or `t5` (SentencePiece)";
            return refuse(format!("expected {expected}, got `{}`", self.model));
        }
        if n == 0 || n > MAX_VOCAB {
            return refuse(format!("expected 1 to {MAX_VOCAB} tokens, got {n}"));
        }
        if n_types != 0 && n_types != n {
            return refuse(format!("expected a type for each of {n} tokens, got {n_types}"));
        }
        for (name, id) in [
            ("the beginning of a text", self.bos),
            ("the end of a text", self.eos),
            ("unknown text", self.unknown),
        ] {
            if let Some(id) = id.filter(|&id| id as usize >= n) {
                return refuse(format!("token for {name}: expected an id below {n}, got {id}"));
            }
        }
        if self.add_bos && self.bos.is_none() {
            return refuse("a token for the beginning of a text is to be added, but none is named".into());
        }
        if self.is_byte_level() {
            return Pre::named(&self.pre).map(|_| ());
        }
        match self.scores.len() {
            scores if scores == n => Ok(()),
            scores => refuse(format!("expected a score for each of {n} tokens, got {scores}")),
        }
    }

    /// Whether it is byte-level BPE; else it is SentencePiece's.
    pub(super) fn is_byte_level(&self) -> bool {
        self.model == "gpt2"
    }

    fn kind(&self, id: usize) -> PieceKind {
        let number = self.token_types.get(id).map_or(1, |&number| u64::try_from(number).unwrap_or(0));
        let kind = PieceKind::numbered(number).unwrap_or(PieceKind::Unused);
        let name = self.tokens[id].as_str();
        let never_a_word = kind == PieceKind::UserDefined || name.contains(['|', '｜']);
        if never_a_word && is_control_name(name) { PieceKind::Control } else { kind }
    }

    /// Adds the tokens that end a text by their names to those that keys of the file give: llama.cpp's rule. A token
    /// that is no control token here is a word, and ends nothing.
    pub(crate) fn add_ends(&self, ends: &mut Vec<u32>) {
        let keyed = |kind: usize| self.fim_ends.get(kind).is_some_and(Option::is_some);
        let fim = FIM_ENDS.iter().enumerate().filter(|&(kind, _)| !keyed(kind)).map(|(_, names)| *names);
        let names: HashSet<&str> = fim.chain([ENDS]).flatten().copied().collect();
        let named: HashMap<&str, u32> = self
            .tokens
            .iter()
            .enumerate()
            .filter(|(id, token)| names.contains(token.as_str()) && self.kind(*id).is_special())
            .map(|(id, token)| (token.as_str(), id as u32))
            .collect();
        let mut others: Vec<u32> = self.fim_ends.iter().flatten().chain(named.values()).copied().collect();
        others.sort_unstable();
        others.dedup();
        others.retain(|&id| (id as usize) < self.tokens.len() && !ends.contains(&id));
        ends.append(&mut others);
        // In a vocabulary with these, the others only end a part of an answer.
        let any = |names: [&str; 2]| names.iter().any(|name| named.contains_key(name));
        let parts = any(["<|return|>", "<|flush|>"]) && any(["<|call|>", "<|calls|>"]);
        let no_ends = [("<|end|>", parts), ("</s>", named.contains_key("<|tool_response>"))];
        for (name, _) in no_ends.into_iter().filter(|(_, so)| *so) {
            ends.retain(|end| named.get(name) != Some(end));
        }
    }

    /// The bytes that each token stands for.
    pub(super) fn token_bytes(&self) -> Result<TokenBytes> {
        let mut special = Vec::new();
        let mut tokens = Vec::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            let kind = self.kind(id);
            tokens.push(match kind {
                PieceKind::Unused => Vec::new(),
                PieceKind::Normal if self.is_byte_level() => from_byte_alphabet(token),
                PieceKind::UserDefined if self.is_byte_level() => token.as_bytes().to_vec(),
                kind => piece_bytes(token, kind),
            });
            special.extend(kind.is_special().then_some(id as u32));
        }
        TokenBytes::new(&tokens, special)
    }

    /// How a text is split into words.
    pub(super) fn pre_tokenizers(&self) -> Result<PreTokenizers> {
        PreTokenizers::of_splits(Pre::named(&self.pre)?.splits)
    }

    /// The tokens that are found in a text before it is split.
    pub(super) fn added(&self) -> Vec<AddedToken> {
        let kinds = self.tokens.iter().enumerate().map(|(id, token)| (id as u32, token, self.kind(id)));
        kinds
            .filter(|(_, token, kind)| {
                (kind.is_special() || *kind == PieceKind::UserDefined) && !token.is_empty()
            })
            .map(|(id, token, kind)| {
                let rstrip = self.strips_after && !KEEP_SPACES.contains(&token.as_str());
                let mut added = AddedToken::plain(id, token, kind.is_special());
                added.rstrip = rstrip;
                added
            })
            .collect()
    }

    /// The pieces of a SentencePiece model.
    pub(super) fn into_pieces(self) -> Declared {
        let kinds: Vec<PieceKind> = (0..self.tokens.len()).map(|id| self.kind(id)).collect();
        let has_bytes = self.tokens.iter().filter(|token| byte_token(token).is_some()).count() >= 256;
        let pieces = self.tokens.into_iter().zip(self.scores).zip(kinds).enumerate();
        let pieces = pieces.map(|(id, ((text, score), kind))| Piece {
            text: named_if_empty(text, id),
            score,
            // The key is right, not the type.
            kind: match self.unknown {
                Some(unknown) if unknown == id as u32 => PieceKind::Unknown,
                Some(_) if kind == PieceKind::Unknown => PieceKind::Control,
                _ => kind,
            },
        });
        Declared {
            pieces: pieces.collect(),
            unigram: self.model == "t5",
            single: false,
            byte_fallback: has_bytes,
            charsmap: self.charsmap,
            space: WhiteSpace {
                add_dummy_prefix: self.add_space_prefix,
                remove_extra_whitespaces: self.remove_extra_whitespaces,
                escape_whitespaces: true,
                treat_whitespace_as_suffix: false,
            },
            bos: self.bos,
            eos: self.eos,
        }
    }

    /// The model of this vocabulary.
    pub(super) fn into_vocabulary(self) -> Result<Vocabulary> {
        let pre = Pre::named(&self.pre)?;
        let mut vocab = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.into_iter().enumerate() {
            let token = named_if_empty(token, id);
            if let Some(&other) = vocab.get(&token) {
                let reason = format!("token {token:?} has two ids, {other} and {id}");
                return Err(Error::Tokenizer(reason));
            }
            vocab.insert(token, id as u32);
        }
        let mut merges = Vec::with_capacity(self.merges.len());
        for (rank, merge) in self.merges.iter().enumerate() {
            let Some((left, right)) = merge.split_once(' ') else {
                return Err(Error::Tokenizer(format!("merge {rank}: expected two tokens, got {merge:?}")));
            };
            merges.push((left.to_string(), right.to_string()));
        }
        let bpe = Bpe {
            vocab,
            merges,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: pre.whole_words,
        };
        Vocabulary::bpe(bpe, true)
    }
}

/// A token with this text; `None` for an unused place in the vocabulary, which has a name of llama.cpp's.
fn named_if_empty(token: String, id: usize) -> String {
    if token.is_empty() { format!("[EMPTY_{id}]") } else { token }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::dfa::{MAX_BUILD, Regex};
    use crate::tokenizer::stages::Word;
    use crate::tokenizer::watch::Watch;

    fn words(pre: &str, text: &str) -> String {
        let (mut words, mut ends) = (Vec::new(), Vec::new());
        let all = PreTokenizers::of_splits(Pre::named(pre).unwrap().splits).unwrap();
        let word = Word { text, at: 0, first: true };
        all.run(word, &mut Watch::none(), &mut |word, _| {
            ends.push(word.at);
            Ok(())
        })
        .unwrap();
        ends.push(text.len());
        words.extend(ends.windows(2).map(|pair| &text[pair[0]..pair[1]]));
        words.join("|")
    }

    #[test]
    fn a_token_at_fault_is_said_to_be_of_the_gguf_file() {
        let tokens = vec!["x".repeat(600), "a".into()];
        let vocab = GgufVocab {
            model: "llama".into(),
            token_types: vec![3, 1],
            scores: vec![0.0; tokens.len()],
            tokens,
            ..GgufVocab::default()
        };
        let error = crate::tokenizer::Tokenizer::from_gguf(vocab).err().unwrap().to_string();
        assert!(error.contains("of tokenizer.ggml.tokens: expected at most 512 bytes, got 600"), "{error}");
    }

    #[test]
    fn names_split_as_llama_cpp_splits() {
        let text = "I'LL pay 12345 €,\n\n  don't! HelloÀB 你好。  ";
        for (pre, want) in [
            ("default", "I|'|LL| pay| |123|45| €|,|\n\n | don|'|t|!| HelloÀB| 你好|。|  "),
            ("gpt-2", "I|'|LL| pay| 12345| €,|\n\n | don|'t|!| HelloÀB| 你好|。|  "),
            ("smollm", "I|'|LL| pay| |1|2|3|4|5| €,|\n\n | don|'t|!| HelloÀB| 你好|。|  "),
            ("llama-bpe", "I|'LL| pay| |123|45| €,\n\n| | don|'t|!| HelloÀB| 你好|。|  "),
            ("qwen2", "I|'LL| pay| |1|2|3|4|5| €,\n\n| | don|'t|!| HelloÀB| 你好|。|  "),
            ("tekken", "I|'LL| pay| |1|2|3|4|5| €,\n\n| | don|'t|!| HelloÀ|B| 你好|。|  "),
            ("deepseek-llm", "I|'|LL| pay| |12345| |€|,|\n|\n| | don|'|t|!| Hello|À|B| |你好|。|  "),
            ("bailingmoe", "I|'LL| pay| |1|2|3|4|5| €,\n\n| | don|'t|!| HelloÀB| 你好|。|  "),
            ("minicpm5", "I|'LL| pay| |123|45| €,\n\n| | don|'t|!| HelloÀB| 你好|。|  "),
            ("hunyuan-dense", "I|'LL| pay| |123|45| €,\n\n| | don|'t|!| HelloÀB| |你好|。|  "),
            ("seed-coder", "I|'LL| pay| |1|2|3|4|5| €,|\n\n| | don|'t|!| HelloÀB| 你好|。|  "),
            ("deepseek-v3", "I|'LL| pay| |123|45| €,\n\n| | don|'t|!| HelloÀB| |你好|。|  "),
        ] {
            assert_eq!(words(pre, text), want, "{pre}");
        }
    }

    #[test]
    fn every_name_is_there_once_and_its_expressions_compile() {
        let mut names: Vec<&str> = PRES.iter().flat_map(|pre| pre.names).copied().collect();
        for pre in PRES {
            assert!(PreTokenizers::of_splits(pre.splits).is_ok(), "{:?}", pre.names);
            let mut left = MAX_BUILD;
            pre.splits.iter().for_each(|split| drop(Regex::within(split, &mut left).unwrap()));
            let work = MAX_BUILD - left;
            assert!(work < MAX_BUILD / 8, "{:?} takes {work}", pre.names);
        }
        names.sort_unstable();
        let n = names.len();
        names.dedup();
        assert_eq!(names.len(), n);
        assert!(
            GgufVocab::default_add_bos("gpt2", "llama-bpe") && GgufVocab::default_add_bos("gpt2", "tekken")
        );
        assert!(!GgufVocab::default_add_bos("gpt2", "qwen2") && !GgufVocab::default_add_bos("t5", ""));
    }
}
