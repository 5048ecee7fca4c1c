//! GLM-4 9B of 2024, as transformers stores it: [GLM-4 0414](super::glm4) without norms after the halves of a layer.

use super::{Family, InFolder, glm4};

pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "glm",
        classes: &["glmfor"],
        read: glm4::read_without_post_norms,
        names: glm4::names_in_folder,
    },
    // Files of this architecture are from the original code, with other names.
    gguf: None,
};
