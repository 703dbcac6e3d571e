//! The wire: prost messages and tonic clients and servers of the packages `gantry.*.v1`.
//!
//! Invariants: nothing here decides anything; conversions to plain types live beside the service that needs them.
//! With the feature `grpc` off only [`shim`] exists, so that the shim links neither tonic nor tokio.

/// Frames between runtime and a shim (`gantry.shim.v1`).
pub mod shim {
    #![allow(clippy::all, missing_docs, clippy::unwrap_used)]
    include!(concat!(env!("OUT_DIR"), "/gantry.shim.v1.rs"));
}

#[cfg(feature = "grpc")]
mod convert;

#[cfg(feature = "grpc")]
macro_rules! package {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The generated code, nested as the packages are, since it refers to itself by that path.
        #[allow(clippy::all, missing_docs, clippy::unwrap_used, clippy::large_enum_variant)]
        pub mod gantry {
            $(pub mod $name { pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/gantry.", stringify!($name), ".v1.rs"));
            } })*
        }
        $($(#[$doc])* pub use gantry::$name::v1 as $name;)*
    };
}

#[cfg(feature = "grpc")]
package!(
    /// Values that several services speak about (`gantry.types.v1`).
    types,
    /// Blobs, images, leases (`gantry.store.v1`).
    store,
    /// Layers, snapshots, volumes (`gantry.snapshotter.v1`).
    snapshotter,
    /// Pulls (`gantry.registry.v1`).
    registry,
    /// Networks and sandboxes (`gantry.network.v1`).
    network,
    /// Containers (`gantry.runtime.v1`).
    runtime,
    /// Making images (`gantry.build.v1`).
    build,
);

/// The encoded `FileDescriptorSet` of every package, for gRPC reflection.
#[cfg(feature = "grpc")]
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
