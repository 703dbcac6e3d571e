//! A pull as the user sees it: bars on a terminal, plain lines elsewhere, nothing when asked.
//!
//! Invariant: progress goes to standard error, so that standard output is the command's result alone.

use std::collections::HashMap;

use gantry_proto::registry::pull_event::Event;
use gantry_proto::registry::{
    LayerPhase, LayerProgress, PullDone, PullEvent, PullPolicy, PullRequest,
};
use gantry_proto::types::Platform;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::error::{Error, Result};
use crate::output::{is_lively, text};
use crate::peers::Engine;

enum Screen {
    Quiet,
    Lines(HashMap<String, i32>),
    Bars(MultiProgress, HashMap<String, ProgressBar>, ProgressBar),
}

fn word(phase: LayerPhase) -> &'static str {
    match phase {
        LayerPhase::Waiting => "Waiting",
        LayerPhase::Exists => "Already exists",
        LayerPhase::Downloading => "Downloading",
        LayerPhase::Verifying => "Verifying",
        LayerPhase::Unpacking => "Unpacking",
        LayerPhase::Done => "Pull complete",
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

impl Screen {
    fn new(quiet: bool) -> Self {
        if quiet {
            Screen::Quiet
        } else if is_lively() {
            let bars = MultiProgress::new();
            let total = bars.add(ProgressBar::new(0));
            total.set_style(style("{msg}"));
            Screen::Bars(bars, HashMap::new(), total)
        } else {
            Screen::Lines(HashMap::new())
        }
    }

    fn layer(&mut self, layer: &LayerProgress) {
        let id = text::short_id(&layer.digest);
        let now = layer.phase();
        match self {
            Screen::Quiet => {}
            Screen::Lines(seen) => {
                if seen.insert(id.clone(), layer.phase) != Some(layer.phase)
                    && now != LayerPhase::Waiting
                {
                    eprintln!("{id}: {}", word(now));
                }
            }
            Screen::Bars(bars, lines, total) => {
                let bar = lines.entry(id.clone()).or_insert_with(|| {
                    let bar = ProgressBar::new(0);
                    let bar = bars.insert_before(total, bar);
                    bar.set_style(style(
                        "{prefix}: {msg:<15} [{bar:30}] {bytes}/{total_bytes}",
                    ));
                    bar.set_prefix(id);
                    bar
                });
                bar.set_length(u64::try_from(layer.total_bytes).unwrap_or(0));
                bar.set_position(u64::try_from(layer.current_bytes).unwrap_or(0));
                bar.set_message(word(now));
            }
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Layer(layer) => self.layer(layer),
            Event::Total(sum) => {
                if let Screen::Bars(_, _, total) = self {
                    let left = if sum.eta_seconds >= 0 {
                        format!(", {} s left", sum.eta_seconds)
                    } else {
                        String::new()
                    };
                    total.set_message(format!(
                        "{} of {}, {}/s{left}",
                        text::size(sum.current_bytes),
                        text::size(sum.total_bytes),
                        text::size(sum.bytes_per_second)
                    ));
                }
            }
            Event::Resolved(_) | Event::Done(_) => {}
        }
    }

    fn finish(self) {
        if let Screen::Bars(_, lines, total) = self {
            for bar in lines.values() {
                bar.finish();
            }
            total.finish_and_clear();
        }
    }
}

/// Pulls an image and shows how far it is. An engine that restarts meanwhile is asked again.
///
/// # Errors
/// What the engine says.
pub async fn pull(
    engine: &Engine,
    reference: &str,
    platform: Option<Platform>,
    quiet: bool,
) -> Result<PullDone> {
    let request = PullRequest {
        reference: reference.to_owned(),
        platform,
        policy: PullPolicy::Always.into(),
        unpack: true,
        ..PullRequest::default()
    };
    let mut screen = Screen::new(quiet);
    let began = std::time::Instant::now();
    loop {
        match try_pull(engine, request.clone(), &mut screen).await {
            Ok(done) => {
                screen.finish();
                return Ok(done);
            }
            Err(error)
                if matches!(&error, Error::Engine(_))
                    && error.is_away()
                    && began.elapsed() < std::time::Duration::from_secs(60) =>
            {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn try_pull(engine: &Engine, request: PullRequest, screen: &mut Screen) -> Result<PullDone> {
    let mut events = engine
        .call(|| {
            let (mut client, request) = (engine.registry(), request.clone());
            async move { client.pull(request).await }
        })
        .await?;
    loop {
        let next = events
            .message()
            .await
            .map_err(|status| engine.explain(status))?;
        match next {
            Some(PullEvent {
                event: Some(Event::Done(done)),
            }) => return Ok(done),
            Some(PullEvent { event: Some(event) }) => screen.event(&event),
            Some(PullEvent { event: None }) => {}
            None => {
                let gone = tonic::Status::unavailable("the engine ended the pull");
                return Err(engine.explain(gone));
            }
        }
    }
}
