//! Conversions between the shared wire values and the plain ones of `gantry-types`.

use gantry_types::Platform;

impl From<Platform> for crate::types::Platform {
    fn from(platform: Platform) -> Self {
        Self {
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant,
        }
    }
}

impl From<crate::types::Platform> for Platform {
    /// An empty system or processor means the host's.
    fn from(platform: crate::types::Platform) -> Self {
        let host = Platform::host();
        let or = |given: String, default: String| if given.is_empty() { default } else { given };
        Platform::new(
            &or(platform.os, host.os),
            &or(platform.architecture, host.architecture),
            &platform.variant,
        )
    }
}
