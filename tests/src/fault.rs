//! Chance with a seed that is printed, so that a failure can be repeated: `GANTRY_SEED=n cargo xtask test crash`.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// A source of chance.
#[derive(Debug)]
pub struct Dice {
    rng: StdRng,
    seed: u64,
}

impl Dice {
    /// From `GANTRY_SEED`, or a new seed; prints which.
    pub fn from_env(test: &str) -> Dice {
        let seed = match std::env::var("GANTRY_SEED") {
            Ok(text) => text.parse().expect("GANTRY_SEED is a number"),
            Err(_) => rand::random(),
        };
        println!("{test}: GANTRY_SEED={seed}");
        Dice::new(seed)
    }

    /// With this seed.
    pub fn new(seed: u64) -> Dice {
        Dice {
            rng: StdRng::seed_from_u64(seed),
            seed,
        }
    }

    /// The seed, for messages.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.rng.random_range(0..of.len())]
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.rng.random_range(0..end)
    }

    /// Sleeps for less than `limit`.
    pub fn pause(&mut self, limit: Duration) {
        std::thread::sleep(limit.mul_f64(self.rng.random::<f64>()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_throws_the_same() {
        let throws = |seed| {
            let mut dice = Dice::new(seed);
            (0..32).map(|_| dice.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(throws(7), throws(7));
        assert_ne!(throws(7), throws(8));
    }
}
