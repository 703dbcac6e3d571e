//! `save` and `load`: images as files and through pipes.
//!
//! Invariant: an archive never goes to a terminal; a file that could not be written whole does not stay.

use std::io::{IsTerminal as _, Read, Write as _};
use std::process::ExitCode;

use clap::Args;
use gantry_proto::store::{
    ExportImagesRequest, ImportImagesInput, ImportImagesOptions, LoadedImage, import_images_event,
    import_images_input,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::{Error, Result};
use crate::flags::misc::platform;
use crate::image::familiar;
use crate::output::print;
use crate::peers::Engine;

/// Bytes of a chunk.
const CHUNK: usize = 256 << 10;

/// Write images to one tar archive, which is an OCI image layout and a docker archive
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  ctl save -o app.tar app:1 app:2\n  ctl save debian | zstd >debian.tar.zst\n  ctl save --platform linux/arm64 debian | ssh host ctl load"
)]
pub struct Save {
    /// File to write to, instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<String>,
    /// Only this platform (may be given more than once); everything that is here when left out
    #[arg(long, value_name = "PLATFORM")]
    platform: Vec<String>,
    /// Names, ids, or repositories, which mean all their tags
    #[arg(required = true)]
    images: Vec<String>,
}

impl Save {
    /// Writes the archive.
    ///
    /// # Errors
    /// What the engine or the file says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let platforms: std::result::Result<Vec<_>, String> =
            self.platform.iter().map(|text| platform(text)).collect();
        let request = ExportImagesRequest {
            references: self.images,
            platforms: platforms.map_err(Error::Usage)?,
        };
        if self.output.is_none() && std::io::stdout().is_terminal() {
            return Err(Error::Usage(
                "an archive is not written to a terminal; give -o FILE or redirect standard output"
                    .into(),
            ));
        }
        let mut chunks = engine
            .call(|| {
                let (mut client, request) = (engine.store(), request.clone());
                async move { client.export_images(request).await }
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

/// Where an archive goes: a file appears under its name when it is whole.
pub struct Out {
    to: Box<dyn std::io::Write>,
    file: Option<(String, String)>,
}

impl Out {
    /// A file, or standard output.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn open(name: Option<String>) -> Result<Self> {
        let Some(name) = name else {
            return Ok(Self {
                to: Box::new(std::io::stdout().lock()),
                file: None,
            });
        };
        // A device or a pipe is written to as it is.
        let special = std::fs::metadata(&name).is_ok_and(|meta| !meta.is_file());
        let part = if special {
            name.clone()
        } else {
            format!("{name}.part{}", std::process::id())
        };
        let file = std::fs::File::create(&part).map_err(Error::io(format!("write {part}")))?;
        Ok(Self {
            to: Box::new(file),
            file: (!special).then_some((part, name)),
        })
    }

    /// Writes on.
    ///
    /// # Errors
    /// When the disk is full or the reader has gone.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let name = self
            .file
            .as_ref()
            .map_or("standard output", |(_, name)| name);
        match self.to.write_all(bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Error::Closed),
            other => other.map_err(Error::io(format!("write {name}"))),
        }
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// As [`Out::write`].
    pub fn finish(mut self) -> Result<()> {
        self.to.flush().map_err(Error::io("write the archive"))?;
        match self.file.take() {
            Some((part, name)) => {
                std::fs::rename(&part, &name).map_err(Error::io(format!("name {part} to {name}")))
            }
            None => Ok(()),
        }
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        if let Some((part, _)) = &self.file {
            let _ = std::fs::remove_file(part);
        }
    }
}

/// Take images in from an archive: an OCI image layout or a docker archive, plain, gzip or zstd
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  ctl load -i app.tar\n  curl -L https://example.com/app.tar.gz | ctl load"
)]
pub struct Load {
    /// File to read, instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<String>,
    /// Only this platform gets the names
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Print only names or ids
    #[arg(short, long)]
    quiet: bool,
}

impl Load {
    /// Reads the archive.
    ///
    /// # Errors
    /// What the engine says of it.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let platform = self
            .platform
            .as_deref()
            .map(platform)
            .transpose()
            .map_err(Error::Usage)?;
        let from: Box<dyn Read + Send> = match &self.input {
            Some(name) => {
                Box::new(std::fs::File::open(name).map_err(Error::io(format!("read {name}")))?)
            }
            None if std::io::stdin().is_terminal() => {
                return Err(Error::Usage(
                    "an archive is not read from a terminal; give -i FILE or redirect standard input"
                        .into(),
                ));
            }
            None => Box::new(std::io::stdin()),
        };
        let (send, chunks) = mpsc::channel(8);
        let options = ImportImagesInput {
            input: Some(import_images_input::Input::Options(ImportImagesOptions {
                platform,
            })),
        };
        let _ = send.send(options).await;
        // A read that fails ends the stream in the middle, which the engine finds out: the archive has no end.
        let reading = std::thread::spawn(move || feed(from, &send));
        let mut events = engine
            .store()
            .import_images(ReceiverStream::new(chunks))
            .await
            .map_err(|status| engine.explain(status))?
            .into_inner();
        while let Some(event) = events
            .message()
            .await
            .map_err(|status| engine.explain(status))?
        {
            if let Some(import_images_event::Event::Image(image)) = event.event {
                print(&self.line(&image))?;
            }
        }
        match reading.join() {
            Ok(Err(error)) => Err(Error::io("read the archive")(error)),
            _ => Ok(ExitCode::SUCCESS),
        }
    }

    fn line(&self, image: &LoadedImage) -> String {
        let id = if image.id.is_empty() {
            &image.target.clone().unwrap_or_default().digest
        } else {
            &image.id
        };
        match (self.quiet, image.dangling) {
            (true, true) => format!("{id}\n"),
            (true, false) => format!("{}\n", image.name),
            (false, true) => format!("Loaded image ID: {id}\n"),
            (false, false) => format!("Loaded image: {}\n", familiar(&image.name)),
        }
    }
}

fn feed(
    mut from: Box<dyn Read + Send>,
    to: &mpsc::Sender<ImportImagesInput>,
) -> std::io::Result<()> {
    loop {
        let mut data = vec![0; CHUNK];
        let length = from.read(&mut data)?;
        if length == 0 {
            return Ok(());
        }
        data.truncate(length);
        let input = ImportImagesInput {
            input: Some(import_images_input::Input::Data(data)),
        };
        if to.blocking_send(input).is_err() {
            return Ok(());
        }
    }
}
