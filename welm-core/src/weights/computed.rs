//! What a matrix is computed with: one decision, for every backend and for the estimate.
//!
//! | asked | computed with |
//! |---|---|
//! | f32, bf16, int8 | that |
//! | auto | the first type of the backend's kernels that holds all of the matrix exactly as it is stored |

use super::formats::StoredType;
use crate::options::Dtype;

/// What a matrix is computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Computed {
    /// The blocks of each part's format, as they are.
    Blocks,
    /// int8 with a scale for a group of columns.
    Int8,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// IEEE 754 binary32, to which everything can be dequantised.
    F32,
}

/// The types of weights that a backend has kernels for.
pub(crate) struct Kernels {
    /// The backend's name, for messages.
    pub(crate) backend: &'static str,
    /// Those that are preferred first.
    pub(crate) types: &'static [Computed],
}

impl Computed {
    /// What a matrix is computed with whose parts are stored so; none if the backend has no kernel for it.
    pub(crate) fn of(
        stored: impl Iterator<Item = StoredType> + Clone,
        asked: Dtype,
        kernels: &Kernels,
    ) -> Option<Computed> {
        let fits = |computed: &Computed| match asked {
            Dtype::F32 => *computed == Computed::F32,
            Dtype::Bf16 => *computed == Computed::Bf16,
            Dtype::Int8 => *computed == Computed::Int8,
            Dtype::Auto => stored.clone().all(|stored| computed.holds(stored)),
        };
        kernels.types.iter().copied().find(fits)
    }

    /// Whether this has the values that are stored so, or, as f32, what they are dequantised to.
    fn holds(self, stored: StoredType) -> bool {
        match self {
            Computed::Blocks => stored.format().is_blocks(),
            Computed::Int8 => stored.format().int8().is_some(),
            Computed::F16 => stored == StoredType::F16,
            Computed::Bf16 => stored == StoredType::Bf16,
            Computed::F32 => true,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Computed::Blocks => "blocks",
            Computed::Int8 => "int8",
            Computed::F16 => "f16",
            Computed::Bf16 => "bf16",
            Computed::F32 => "f32",
        }
    }
}

impl Kernels {
    /// The types for a message: those that hold most first.
    pub(crate) fn listed(&self) -> String {
        self.types.iter().rev().map(|computed| computed.name()).collect::<Vec<_>>().join(" or ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_first_type_that_holds_all_and_others_are_taken_as_asked() {
        use StoredType::{Bf16, F16, F32, Q4_0, Q4_1, Q4_K, Q5_0, Q6_K, Q8_0};
        let all = Kernels {
            backend: "all",
            types: &[Computed::Blocks, Computed::Int8, Computed::F16, Computed::Bf16, Computed::F32],
        };
        let few = Kernels { backend: "few", types: &[Computed::Int8, Computed::Bf16] };
        let of = |stored: &[StoredType], asked, kernels| Computed::of(stored.iter().copied(), asked, kernels);
        for (stored, with_all, with_few) in [
            (&[Q4_0, Q4_1][..], Computed::Blocks, None),
            (&[Q4_0], Computed::Blocks, Some(Computed::Int8)),
            (&[Q4_0, Q8_0, Q5_0], Computed::Blocks, Some(Computed::Int8)),
            (&[Q4_1, Q8_0], Computed::Blocks, None),
            (&[Q4_K, Q6_K], Computed::Blocks, None),
            (&[Q4_K, F16], Computed::F32, None),
            (&[F16, F16], Computed::F16, None),
            (&[Bf16, Bf16], Computed::Bf16, Some(Computed::Bf16)),
            (&[Bf16, F16], Computed::F32, None),
            (&[Q8_0, Bf16], Computed::F32, None),
            (&[F32], Computed::F32, None),
        ] {
            assert_eq!(of(stored, Dtype::Auto, &all), Some(with_all), "{stored:?}");
            assert_eq!(of(stored, Dtype::Auto, &few), with_few, "{stored:?}");
            for (asked, computed) in
                [(Dtype::F32, Computed::F32), (Dtype::Bf16, Computed::Bf16), (Dtype::Int8, Computed::Int8)]
            {
                assert_eq!(of(stored, asked, &all), Some(computed));
                assert_eq!(of(stored, asked, &few), few.types.contains(&computed).then_some(computed));
            }
        }
        assert_eq!(few.listed(), "bf16 or int8");
    }
}
