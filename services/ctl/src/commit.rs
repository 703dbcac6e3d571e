//! `commit`, `export`, `import`: images and archives from containers, and images from archives.
//!
//! Invariant: what a command prints on standard output is its result alone: an image's id, or the archive.

use std::io::{IsTerminal as _, Read};
use std::process::ExitCode;

use clap::Args;
use gantry_proto::build::{
    CommitRequest, ImportRootfsInput, ImportRootfsOptions, import_rootfs_input,
};
use gantry_proto::runtime::GetRequest;
use gantry_proto::snapshotter::ExportTreeRequest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::archive::Out;
use crate::error::{Error, Result};
use crate::output::print;
use crate::peers::Engine;

/// Bytes of a chunk.
const CHUNK: usize = 256 << 10;

/// Make an image from a container's changes
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  ctl commit web web:patched\n  ctl commit -m 'with curl' --change 'CMD [\"curl\"]' box tools/curl\n\nVolumes are no part of the image. The container stands still meanwhile; --pause=false lets it run."
)]
pub struct Commit {
    /// Who did it
    #[arg(short, long, default_value = "")]
    author: String,
    /// Why
    #[arg(short, long, default_value = "")]
    message: String,
    /// Dockerfile instruction on settings: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Let the container stand still meanwhile
    #[arg(short, long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pause: bool,
    /// Name or id
    container: String,
    /// Name for the image
    image: Option<String>,
}

impl Commit {
    /// Makes it.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let request = CommitRequest {
            container: self.container,
            reference: self.image.unwrap_or_default(),
            author: self.author,
            message: self.message,
            changes: self.change,
            no_pause: !self.pause,
        };
        // Made once: a repeat after a broken connection would make another image.
        let made = engine
            .build()
            .commit(request)
            .await
            .map_err(|status| engine.explain(status))?
            .into_inner();
        print(&format!("{}\n", made.id))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Write a container's file system as a tar archive
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  ctl export -o root.tar web\n  ctl export web | tar t")]
pub struct Export {
    /// File to write to, instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<String>,
    /// Name or id
    container: String,
}

impl Export {
    /// Writes it.
    ///
    /// # Errors
    /// What the engine or the file says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        if self.output.is_none() && std::io::stdout().is_terminal() {
            return Err(Error::Usage(
                "an archive is not written to a terminal; give -o FILE or redirect standard output"
                    .into(),
            ));
        }
        let found = engine
            .call(|| {
                let mut client = engine.runtime();
                let request = GetRequest {
                    id: self.container.clone(),
                };
                async move { client.get(request).await }
            })
            .await?;
        let mut chunks = engine
            .call(|| {
                let mut client = engine.snapshotter();
                let request = ExportTreeRequest {
                    key: found.id.clone(),
                };
                async move { client.export_tree(request).await }
            })
            .await?;
        let mut out = Out::open(self.output)?;
        while let Some(chunk) = chunks
            .message()
            .await
            .map_err(|status| engine.explain(status))?
        {
            out.write(&chunk.data)?;
        }
        out.finish()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Make an image from a file system in a tar archive: plain, gzip or zstd
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  ctl import root.tar base:1\n  ctl export web | ctl import --change 'CMD [\"sh\"]' - web:flat"
)]
pub struct Import {
    /// Dockerfile instruction on settings: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Why, for the history
    #[arg(short, long, default_value = "")]
    message: String,
    /// Platform, such as linux/arm64; the host's when left out
    #[arg(long, value_name = "PLATFORM", default_value = "")]
    platform: String,
    /// File to read; - = standard input
    file: String,
    /// Name for the image
    image: Option<String>,
}

impl Import {
    /// Makes it.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let from: Box<dyn Read + Send> = match self.file.as_str() {
            "-" if std::io::stdin().is_terminal() => {
                return Err(Error::Usage(
                    "an archive is not read from a terminal; redirect standard input".into(),
                ));
            }
            "-" => Box::new(std::io::stdin()),
            name if name.contains("://") => {
                return Err(Error::Usage(format!(
                    "{name} is an address; fetch it and give the file, or pipe it: curl -L {name} | ctl import -"
                )));
            }
            name => Box::new(std::fs::File::open(name).map_err(Error::io(format!("read {name}")))?),
        };
        let (send, chunks) = mpsc::channel(8);
        let options = ImportRootfsInput {
            input: Some(import_rootfs_input::Input::Options(ImportRootfsOptions {
                reference: self.image.unwrap_or_default(),
                message: self.message,
                changes: self.change,
                platform: self.platform,
                source: self.file,
            })),
        };
        let _ = send.send(options).await;
        let reading = std::thread::spawn(move || feed(from, &send));
        let made = engine
            .build()
            .import_rootfs(ReceiverStream::new(chunks))
            .await
            .map_err(|status| engine.explain(status))?
            .into_inner();
        if let Ok(Err(error)) = reading.join() {
            return Err(Error::io("read the archive")(error));
        }
        print(&format!("{}\n", made.id))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn feed(
    mut from: Box<dyn Read + Send>,
    to: &mpsc::Sender<ImportRootfsInput>,
) -> std::io::Result<()> {
    loop {
        let mut data = vec![0; CHUNK];
        let length = from.read(&mut data)?;
        if length == 0 {
            return Ok(());
        }
        data.truncate(length);
        let input = ImportRootfsInput {
            input: Some(import_rootfs_input::Input::Data(data)),
        };
        if to.blocking_send(input).is_err() {
            return Ok(());
        }
    }
}
