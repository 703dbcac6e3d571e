//! How far a pull is, for those who watch.
//!
//! Invariant: counters are written by downloads and read by a clock, so that watching costs a download nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

/// Where one blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Its turn has not come.
    Waiting = 0,
    /// It was there.
    Exists = 1,
    /// Bytes come, or go.
    Moving = 2,
    /// Taken over from another repository of the registry.
    Mounted = 3,
    /// It is being unpacked.
    Unpacking = 4,
    /// Done.
    Done = 5,
}

/// One blob of a pull.
#[derive(Debug)]
pub struct Line {
    /// Its digest.
    pub digest: String,
    /// Bytes.
    pub total: u64,
    /// Bytes that are there; shared with the download.
    count: std::sync::Mutex<Arc<AtomicU64>>,
    phase: AtomicU8,
    /// Repository that it was taken over from.
    source: std::sync::OnceLock<String>,
}

impl Line {
    /// A blob whose turn has not come.
    pub fn new(digest: String, total: u64) -> Arc<Self> {
        Arc::new(Self {
            digest,
            total,
            count: std::sync::Mutex::default(),
            phase: AtomicU8::new(Phase::Waiting as u8),
            source: std::sync::OnceLock::new(),
        })
    }

    /// Follows a download.
    pub fn follow(&self, count: Arc<AtomicU64>) {
        *self
            .count
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = count;
        self.enter(Phase::Moving);
    }

    /// Goes into a phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Was taken over from another repository.
    pub fn came_from(&self, repository: String) {
        let _ = self.source.set(repository);
    }

    /// That repository; empty when it was not.
    pub fn source(&self) -> String {
        self.source.get().cloned().unwrap_or_default()
    }

    /// Phase and bytes.
    pub fn look(&self) -> (u8, u64) {
        let phase = self.phase.load(Ordering::Relaxed);
        let counted = self
            .count
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .load(Ordering::Relaxed);
        let whole = [Phase::Exists, Phase::Mounted, Phase::Unpacking, Phase::Done]
            .iter()
            .any(|done| *done as u8 == phase);
        (
            phase,
            if whole {
                self.total
            } else {
                counted.min(self.total)
            },
        )
    }
}

/// Speed over the last seconds.
#[derive(Debug)]
pub struct Rate {
    at: Instant,
    bytes: u64,
    per_second: f64,
}

/// The sum of all blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    /// Bytes that are there.
    pub current: u64,
    /// Bytes of all.
    pub total: u64,
    /// Smoothed.
    pub per_second: u64,
    /// `None` = not known.
    pub seconds_left: Option<u64>,
}

impl Rate {
    /// Starts counting.
    pub fn new(bytes: u64) -> Self {
        Self {
            at: Instant::now(),
            bytes,
            per_second: 0.0,
        }
    }

    /// The sum now; the speed is an average that forgets the past within about two seconds.
    pub fn sum(&mut self, current: u64, total: u64) -> Sum {
        self.sum_after(self.at.elapsed().as_secs_f64(), current, total)
    }

    fn sum_after(&mut self, seconds: f64, current: u64, total: u64) -> Sum {
        if seconds > 0.01 {
            let now = current.saturating_sub(self.bytes) as f64 / seconds;
            let weight = 1.0 - (-seconds / 2.0).exp();
            self.per_second = if self.per_second == 0.0 {
                now
            } else {
                self.per_second + weight * (now - self.per_second)
            };
            (self.at, self.bytes) = (Instant::now(), current);
        }
        let left = total.saturating_sub(current);
        Sum {
            current,
            total,
            per_second: self.per_second as u64,
            seconds_left: (self.per_second >= 1.0)
                .then(|| (left as f64 / self.per_second).ceil() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_and_the_rest_is_estimated() {
        let mut rate = Rate::new(0);
        let sum = rate.sum_after(1.0, 1000, 5000);
        assert_eq!((sum.per_second, sum.seconds_left), (1000, Some(4)));
        for step in 2..20 {
            rate.sum_after(1.0, 1000 + step * 100, 5000);
        }
        let sum = rate.sum_after(1.0, 3000, 5000);
        assert!((95..200).contains(&sum.per_second), "{sum:?}");
        assert_eq!(Rate::new(0).sum_after(1.0, 0, 10).seconds_left, None);
    }

    #[test]
    fn a_line_shows_what_its_download_counts() {
        let line = Line::new("d".into(), 10);
        let count = Arc::new(AtomicU64::new(4));
        line.follow(count.clone());
        assert_eq!(line.look(), (2, 4));
        line.enter(Phase::Done);
        assert_eq!(line.look(), (5, 10));
    }
}
