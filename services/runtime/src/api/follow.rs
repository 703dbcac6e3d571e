//! Logs and events: what goes on as long as the caller listens.
//!
//! Invariant: nothing is sent twice or left out between the past and what comes.

use std::time::Duration;

use gantry_chassis::to_status;
use gantry_proto::runtime::{Event, EventsRequest, LogEntry, LogsRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Handlers, Outgoing};
use crate::convert::{nanos, timestamp};
use crate::error::Error;
use crate::filter::Filter;
use crate::logs::{Reader, Wanted};

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(100);

impl Handlers {
    pub(super) async fn log_stream(
        &self,
        request: LogsRequest,
    ) -> Result<Outgoing<LogEntry>, Error> {
        let container = self.0.find(&request.id)?;
        let wanted = Wanted {
            tail: usize::try_from(request.tail).ok(),
            since: request.since.as_ref().map(nanos),
            until: request.until.as_ref().map(nanos),
        };
        let path = container.view().log_path.clone();
        let (tell, told) = mpsc::channel(64);
        let follow = request.follow;
        let drain = self.0.drain.clone();
        self.0.drain.spawn("logs", async move {
            let copy = async {
                let mut reader = Reader::open(&path, wanted);
                let mut entries = reader.past();
                loop {
                    let entries_now = match entries {
                        Ok(entries) => entries,
                        Err(source) => {
                            let error = Error::io("read", &path)(source);
                            let _ = tell.send(Err(to_status(&error))).await;
                            return;
                        }
                    };
                    let idle = entries_now.is_empty();
                    for entry in entries_now {
                        let entry = LogEntry {
                            time: timestamp(entry.time),
                            stderr: entry.stderr,
                            data: entry.data,
                        };
                        if tell.send(Ok(entry)).await.is_err() {
                            return;
                        }
                    }
                    if !follow {
                        if idle {
                            return;
                        }
                    } else if idle {
                        if !container.view().state.is_active() {
                            // Once more: something may have come before the end.
                            match reader.more() {
                                Ok(rest) if rest.is_empty() => return,
                                rest => {
                                    entries = rest;
                                    continue;
                                }
                            }
                        }
                        tokio::time::sleep(LOOK).await;
                    }
                    entries = reader.more();
                }
            };
            tokio::select! {
                () = copy => {}
                () = tell.closed() => {}
                () = drain.cancelled() => {}
            }
        });
        Ok(Box::pin(ReceiverStream::new(told)))
    }

    pub(super) fn event_stream(&self, request: &EventsRequest) -> Result<Outgoing<Event>, Error> {
        let filter = Filter::for_events(&request.filters)?;
        let until = request.until.as_ref().map(nanos);
        let since = request.since.as_ref().map(nanos);
        let (past, gap, mut live) = self.0.events.watch(request.from_sequence, since);
        let (tell, told) = mpsc::channel(256);
        let drain = self.0.drain.clone();
        self.0.drain.spawn("events", async move {
            let mut gap = gap;
            let mut send = async |event: crate::events::Event| {
                if !filter.fits_event(&event) || until.is_some_and(|until| event.time > until) {
                    return true;
                }
                let wire = Event {
                    sequence: event.sequence,
                    time: timestamp(event.time),
                    r#type: "container".into(),
                    action: event.action.into(),
                    id: event.id,
                    attributes: event.attributes.into_iter().collect(),
                    gap: std::mem::take(&mut gap),
                };
                tell.send(Ok(wire)).await.is_ok()
            };
            for event in past {
                if !send(event).await {
                    return;
                }
            }
            loop {
                let left = until.map(|until| {
                    Duration::from_nanos(u64::try_from(until - crate::hub::now()).unwrap_or(0))
                });
                let timer = async {
                    match left {
                        Some(left) => tokio::time::sleep(left).await,
                        None => std::future::pending().await,
                    }
                };
                let event = tokio::select! {
                    () = drain.cancelled() => return,
                    () = tell.closed() => return,
                    () = timer => return,
                    event = live.recv() => event,
                };
                match event {
                    Ok(event) => {
                        if !send(event).await {
                            return;
                        }
                    }
                    // Too slow for the live ones: it asks again from where it was.
                    Err(_) => return,
                }
            }
        });
        Ok(Box::pin(ReceiverStream::new(told)))
    }
}
