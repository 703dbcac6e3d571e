//! Looking at a pull's counters now and then, for those who watch it.
//!
//! Invariant: a blob is told of only when something about it has changed.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::progress::{Line, Rate};
use crate::pull::Event;

/// Tells what has changed since the last look.
pub struct Watch<'a> {
    lines: &'a [Arc<Line>],
    last: Vec<(u8, u64)>,
    rate: Rate,
    tell: &'a mpsc::Sender<Event>,
}

impl<'a> Watch<'a> {
    /// Nothing has been told.
    pub fn new(lines: &'a [Arc<Line>], tell: &'a mpsc::Sender<Event>) -> Self {
        Self {
            lines,
            last: vec![(u8::MAX, 0); lines.len()],
            rate: Rate::new(0),
            tell,
        }
    }

    /// Tells of each blob that moved on, and of all together.
    pub async fn look(&mut self) {
        let (mut current, mut total) = (0, 0);
        for (line, last) in self.lines.iter().zip(&mut self.last) {
            let now = line.look();
            current += now.1;
            total += line.total;
            if now != *last {
                *last = now;
                let event = Event::Layer {
                    digest: line.digest.clone(),
                    phase: now.0,
                    current: now.1,
                    total: line.total,
                };
                let _ = self.tell.send(event).await;
            }
        }
        let sum = self.rate.sum(current, total);
        let _ = self.tell.send(Event::Total(sum)).await;
    }
}
