//! Compiles the .proto files with protox, so that no protoc is needed.
//! Without the feature `grpc` only the shim's messages are made.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=gantry");
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    let mut files = vec!["gantry/shim/v1/shim.proto".to_owned()];
    if grpc {
        for name in [
            "types",
            "store",
            "snapshotter",
            "registry",
            "network",
            "runtime",
            "build",
        ] {
            files.push(format!("gantry/{name}/v1/{name}.proto"));
        }
    }
    let descriptors = protox::compile(&files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    if grpc {
        tonic_prost_build::configure()
            .file_descriptor_set_path(out.join("descriptors.bin"))
            .compile_fds(descriptors.clone())?;
        use prost::Message as _;
        std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    } else {
        prost_build::Config::new().compile_fds(descriptors)?;
    }
    Ok(())
}
