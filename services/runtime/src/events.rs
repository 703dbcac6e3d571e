//! What happened, for those who watch, and the recent past.
//!
//! Invariants: numbers only grow, also over a restart of the service (they begin at its start's microsecond); who asks for more
//! past than is kept is told that there is a gap.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use tokio::sync::broadcast;

use crate::hub::now;

/// Something that happened to a container.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its number.
    pub sequence: u64,
    /// Unix time, nanoseconds.
    pub time: i64,
    /// "create", "start", "die", ...
    pub action: &'static str,
    /// The container.
    pub id: String,
    /// "name", "image", "exitCode", ...
    pub attributes: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Past {
    next: u64,
    first: u64,
    kept: VecDeque<Event>,
}

/// The book of events.
#[derive(Debug)]
pub struct Events {
    past: Mutex<Past>,
    most: usize,
    live: broadcast::Sender<Event>,
}

impl Events {
    /// A book that keeps so many.
    pub fn new(most: usize) -> Self {
        let first = u64::try_from(now() / 1000).unwrap_or(1);
        Self {
            past: Mutex::new(Past {
                next: first,
                first,
                kept: VecDeque::new(),
            }),
            most,
            live: broadcast::channel(1024).0,
        }
    }

    /// Writes an event down and tells those who watch.
    pub fn tell(&self, action: &'static str, id: &str, attributes: BTreeMap<String, String>) {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let event = Event {
            sequence: past.next,
            time: now(),
            action,
            id: id.to_owned(),
            attributes,
        };
        past.next += 1;
        past.kept.push_back(event.clone());
        while past.kept.len() > self.most {
            past.kept.pop_front();
        }
        past.first = past.kept.front().map_or(past.next, |event| event.sequence);
        // Sent under the lock, so that nobody gets it twice or not at all.
        let _ = self.live.send(event);
    }

    /// The past from a number on (0 = none of it) or from a time on, whether some of it is lost, and what comes.
    pub fn watch(
        &self,
        from: u64,
        since: Option<i64>,
    ) -> (Vec<Event>, bool, broadcast::Receiver<Event>) {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |event: &&Event| {
            (from > 0 && event.sequence >= from) || since.is_some_and(|since| event.time >= since)
        };
        let events = past.kept.iter().filter(wanted).cloned().collect();
        let gap = from > 0 && from < past.first;
        (events, gap, self.live.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_is_bounded_and_says_so() {
        let events = Events::new(3);
        let (_, _, mut live) = events.watch(0, None);
        for _ in 0..5 {
            events.tell("start", "id", BTreeMap::new());
        }
        let first = live.try_recv().unwrap().sequence;
        let (past, gap, _) = events.watch(first, None);
        assert_eq!((past.len(), gap), (3, true));
        let (past, gap, _) = events.watch(first + 3, None);
        assert_eq!((past.len(), gap), (2, false));
        assert_eq!(events.watch(0, Some(0)).0.len(), 3);
    }
}
