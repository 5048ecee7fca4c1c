//! [`FinishReason`], which both errors and answers have.

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// A stop string was generated, or one of `stop_token_ids`.
    Stop,
    /// The model ended the text.
    EndOfText,
    /// `max_tokens` were generated.
    Length,
    /// The request was cancelled, or its stream dropped.
    Cancelled,
    /// The deadline passed.
    Deadline,
}

impl FinishReason {
    /// The reason as one lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::EndOfText => "end_of_text",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Deadline => "deadline",
        }
    }
}
