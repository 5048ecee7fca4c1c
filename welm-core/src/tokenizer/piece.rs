//! A piece of a vocabulary and its kind. SentencePiece files and GGUF files use the same numbers for the kinds.

/// One piece, as it is in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: PieceKind,
}

/// The kind of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceKind {
    Normal,
    /// Stands for text that has no piece. Adds nothing to a text.
    Unknown,
    /// A control token: found in a text only if special tokens are parsed. Adds nothing to a text.
    Control,
    /// Found in every text, before the text is split.
    UserDefined,
    /// Never made from a text.
    Unused,
    /// Spelled like `<0xE4>`: one byte of a character that has no piece.
    Byte,
}

impl PieceKind {
    /// The kind with this number in files.
    pub(super) fn numbered(number: u64) -> Option<Self> {
        Some(match number {
            1 => PieceKind::Normal,
            2 => PieceKind::Unknown,
            3 => PieceKind::Control,
            4 => PieceKind::UserDefined,
            5 => PieceKind::Unused,
            6 => PieceKind::Byte,
            _ => return None,
        })
    }

    /// Whether its spelling is text, and not a special token or a byte.
    pub(super) fn is_text(self) -> bool {
        matches!(self, PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused)
    }

    /// Whether it adds nothing to a text.
    pub(super) fn is_special(self) -> bool {
        matches!(self, PieceKind::Unknown | PieceKind::Control)
    }
}
