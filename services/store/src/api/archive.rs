//! Handlers of archives, trees and checks.
//!
//! Invariant: a caller that leaves ends the work: its channel is closed, and the next chunk finds that out.

use futures_util::StreamExt as _;
use gantry_chassis::pipe::WAITING;
use gantry_chassis::to_status;
use gantry_proto::store::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Events, Handlers};
use crate::archive::DANGLING;
use crate::archive::import::Event;
use crate::index::blocking;
use crate::{Error, convert};

impl Handlers {
    pub(super) async fn describe(&self, reference: &str) -> Result<ImageTree, Error> {
        let (name, target, members) = self.0.tree(reference).await?;
        let image = match self.0.image(&name).await {
            Ok((name, record)) => convert::to_image(name, record),
            // A digest in a repository has no record of its own.
            Err(_) => Image {
                name,
                target: Some(convert::to_descriptor(&target)),
                ..Image::default()
            },
        };
        Ok(ImageTree {
            image: Some(image),
            members: members.into_iter().map(convert::to_member).collect(),
        })
    }

    pub(super) fn look_over(&self, repair: bool, quick: bool) -> Events<Finding> {
        let (tell, told) = mpsc::channel(64);
        let (fail, failed) = mpsc::channel::<Status>(1);
        let store = self.0.clone();
        self.1.spawn("check", async move {
            if let Err(error) = store.check(repair, quick, &tell).await {
                let _ = fail.send(to_status(&error)).await;
            }
        });
        let findings = ReceiverStream::new(told).map(|finding| Ok(convert::to_finding(finding)));
        Box::pin(findings.chain(ReceiverStream::new(failed).map(Err)))
    }

    pub(super) fn export(&self, request: ExportImagesRequest) -> Events<ArchiveChunk> {
        let (send, chunks) = mpsc::channel(WAITING);
        let (fail, failed) = mpsc::channel::<Status>(1);
        let store = self.0.clone();
        self.1.spawn("save", async move {
            let platforms: Vec<_> = request.platforms.into_iter().map(Into::into).collect();
            if let Err(error) = store.export(&request.references, &platforms, send).await {
                let _ = fail.send(to_status(&error)).await;
            }
        });
        let data = ReceiverStream::new(chunks).map(|data| Ok(ArchiveChunk { data }));
        Box::pin(data.chain(ReceiverStream::new(failed).map(Err)))
    }

    pub(super) fn import(
        &self,
        mut input: Streaming<ImportImagesInput>,
    ) -> Events<ImportImagesEvent> {
        let (tell, told) = mpsc::channel(64);
        let (fail, failed) = mpsc::channel::<Status>(1);
        let (store, drain) = (self.0.clone(), self.1.clone());
        self.1.spawn("load", async move {
            let mut platform = None;
            let mut first = None;
            match input.message().await {
                Ok(Some(message)) => match message.input {
                    Some(import_images_input::Input::Options(options)) => {
                        platform = options
                            .platform
                            .filter(|platform| !platform.architecture.is_empty())
                            .map(gantry_types::Platform::from);
                    }
                    Some(import_images_input::Input::Data(data)) => first = Some(data),
                    None => {}
                },
                Ok(None) => {}
                Err(_) => return,
            }
            let (send, chunks) = mpsc::channel(WAITING);
            let feed = async move {
                if let Some(data) = first {
                    let _ = send.send(Some(data)).await;
                }
                loop {
                    let next = tokio::select! {
                        next = input.message() => next,
                        () = drain.cancelled() => Ok(Some(ImportImagesInput { input: None })),
                    };
                    let chunk = match next {
                        Ok(Some(ImportImagesInput {
                            input: Some(import_images_input::Input::Data(data)),
                        })) => Some(data),
                        Ok(None) => return,
                        // The caller broke off, or we are to end: that is no end of the archive.
                        _ => None,
                    };
                    let last = chunk.is_none();
                    if send.send(chunk).await.is_err() || last {
                        return;
                    }
                }
            };
            let handle = tokio::runtime::Handle::current();
            let work = blocking(move || store.import(handle, chunks, platform.as_ref(), &tell));
            let (result, ()) = futures_util::future::join(work, feed).await;
            if let Err(error) = result {
                let _ = fail.send(to_status(&error)).await;
            }
        });
        let files = self.0.files.clone();
        let events = ReceiverStream::new(told).map(move |event| {
            let event = match event {
                Event::Blob(blob) => {
                    import_images_event::Event::Blob(convert::to_blob(&files, &blob))
                }
                Event::Image {
                    name,
                    target,
                    id,
                    dangling,
                } => import_images_event::Event::Image(LoadedImage {
                    dangling: dangling || name.starts_with(DANGLING),
                    name,
                    target: Some(convert::to_descriptor(&target)),
                    id: id.map_or(String::new(), |id| id.to_string()),
                }),
            };
            Ok(ImportImagesEvent { event: Some(event) })
        });
        Box::pin(events.chain(ReceiverStream::new(failed).map(Err)))
    }
}
