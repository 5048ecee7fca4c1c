//! A piece of a vocabulary, and what it is for. SentencePiece's files and GGUF files number the kinds alike.

/// One piece, as a file has it.
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
    /// Stands for text that no piece stands for; adds nothing to a text.
    Unknown,
    /// Found in a text only where special tokens are parsed; adds nothing to a text.
    Control,
    /// Found in every text, before it is split.
    UserDefined,
    /// No text leads to it.
    Unused,
    /// Spelled `<0xE4>`: a byte of a character that has no piece.
    Byte,
}

impl PieceKind {
    /// The kind of this number.
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

    /// Whether a text without special tokens can lead to it by its spelling.
    pub(super) fn is_text(self) -> bool {
        matches!(self, PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused)
    }

    /// Whether it is no part of a text.
    pub(super) fn is_special(self) -> bool {
        matches!(self, PieceKind::Unknown | PieceKind::Control)
    }
}
