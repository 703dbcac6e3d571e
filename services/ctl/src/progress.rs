//! A pull or push as the user sees it: bars on a terminal, plain lines elsewhere, nothing when asked.
//!
//! Invariant: progress goes to standard error, so that standard output is the command's result alone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use gantry_proto::registry::pull_event::Event;
use gantry_proto::registry::{
    LayerPhase, PullDone, PullEvent, PullRequest, PushDone, PushEvent, PushRequest, Total,
    UploadPhase, push_event,
};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::error::{Error, Result};
use crate::output::{is_lively, text};
use crate::peers::Engine;

/// One blob as it is now.
struct Step<'a> {
    digest: &'a str,
    /// What is being done; empty = nothing yet.
    word: String,
    current: i64,
    total: i64,
}

enum Screen {
    Quiet,
    Lines(HashMap<String, String>),
    Bars(MultiProgress, HashMap<String, ProgressBar>, ProgressBar),
}

fn word(phase: LayerPhase) -> &'static str {
    match phase {
        LayerPhase::Waiting => "",
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

    fn step(&mut self, step: &Step<'_>) {
        let id = text::short_id(step.digest);
        match self {
            Screen::Quiet => {}
            Screen::Lines(seen) => {
                if !step.word.is_empty() && seen.get(&id) != Some(&step.word) {
                    eprintln!("{id}: {}", step.word);
                    seen.insert(id, step.word.clone());
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
                bar.set_length(u64::try_from(step.total).unwrap_or(0));
                bar.set_position(u64::try_from(step.current).unwrap_or(0));
                bar.set_message(step.word.clone());
            }
        }
    }

    fn sum(&mut self, sum: &Total) {
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

    fn note(&self, note: &str) {
        match self {
            Screen::Quiet => {}
            Screen::Lines(_) => eprintln!("{note}"),
            Screen::Bars(bars, ..) => {
                let _ = bars.println(note);
            }
        }
    }

    fn pulled(&mut self, event: &Event) {
        match event {
            Event::Layer(layer) => self.step(&Step {
                digest: &layer.digest,
                word: word(layer.phase()).into(),
                current: layer.current_bytes,
                total: layer.total_bytes,
            }),
            Event::Total(sum) => self.sum(sum),
            Event::Resolved(_) | Event::Done(_) => {}
        }
    }

    fn pushed(&mut self, event: &push_event::Event) {
        match event {
            push_event::Event::Layer(layer) => {
                let word = match layer.phase() {
                    UploadPhase::Waiting => String::new(),
                    UploadPhase::Exists => "Layer already exists".into(),
                    UploadPhase::Uploading => "Pushing".into(),
                    UploadPhase::Mounted => format!("Mounted from {}", layer.from),
                    UploadPhase::Done => "Pushed".into(),
                };
                self.step(&Step {
                    digest: &layer.digest,
                    word,
                    current: layer.current_bytes,
                    total: layer.total_bytes,
                });
            }
            push_event::Event::Total(sum) => self.sum(sum),
            push_event::Event::Note(note) => self.note(note),
            push_event::Event::Done(_) => {}
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

/// How long an engine that goes away in the middle is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the engine went away in the middle, and may come back.
fn may_return(error: &Error, began: Instant) -> bool {
    matches!(error, Error::Engine(_)) && error.is_away() && began.elapsed() < PATIENCE
}

/// Pulls an image and shows how far it is. An engine that restarts meanwhile is asked again.
///
/// # Errors
/// What the engine says.
pub async fn pull(engine: &Engine, request: PullRequest, quiet: bool) -> Result<PullDone> {
    let mut screen = Screen::new(quiet);
    let began = Instant::now();
    loop {
        match try_pull(engine, request.clone(), &mut screen).await {
            Err(error) if may_return(&error, began) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            other => {
                screen.finish();
                return other;
            }
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
            Some(PullEvent { event: Some(event) }) => screen.pulled(&event),
            Some(PullEvent { event: None }) => {}
            None => {
                let gone = tonic::Status::unavailable("the engine ended the pull");
                return Err(engine.explain(gone));
            }
        }
    }
}

/// Pushes an image and shows how far it is. An engine that restarts meanwhile is asked again.
///
/// # Errors
/// What the engine says.
pub async fn push(engine: &Engine, request: PushRequest, quiet: bool) -> Result<PushDone> {
    let mut screen = Screen::new(quiet);
    let began = Instant::now();
    loop {
        match try_push(engine, request.clone(), &mut screen).await {
            Err(error) if may_return(&error, began) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            other => {
                screen.finish();
                return other;
            }
        }
    }
}

async fn try_push(engine: &Engine, request: PushRequest, screen: &mut Screen) -> Result<PushDone> {
    let mut events = engine
        .call(|| {
            let (mut client, request) = (engine.registry(), request.clone());
            async move { client.push(request).await }
        })
        .await?;
    loop {
        let next = events
            .message()
            .await
            .map_err(|status| engine.explain(status))?;
        match next {
            Some(PushEvent {
                event: Some(push_event::Event::Done(done)),
            }) => return Ok(done),
            Some(PushEvent { event: Some(event) }) => screen.pushed(&event),
            Some(PushEvent { event: None }) => {}
            None => {
                let gone = tonic::Status::unavailable("the engine ended the push");
                return Err(engine.explain(gone));
            }
        }
    }
}
