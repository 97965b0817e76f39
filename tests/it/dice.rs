//! Random choices that can be made again: each test prints its seed.

/// xorshift64: the same seed makes the same choices.
pub(crate) struct Dice(u64);

impl Dice {
    /// From `variable`, if it is set; prints the seed either way, for another run of the same.
    pub(crate) fn of(variable: &str) -> Dice {
        let fresh = || u64::from(std::process::id()) << 20 | 1;
        let seed = std::env::var(variable).map_or_else(|_| fresh(), |text| text.parse().unwrap());
        println!("{variable}={seed}");
        Dice::new(seed)
    }

    pub(crate) fn new(seed: u64) -> Dice {
        // Zero would stay zero.
        Dice(seed.max(1))
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// One of these.
    pub(crate) fn of_these<T: Copy>(&mut self, these: &[T]) -> T {
        these[usize::try_from(self.below(these.len() as u64)).unwrap()]
    }

    pub(crate) fn bytes(&mut self, count: u64) -> Vec<u8> {
        (0..count)
            .map(|_| self.below(256).to_le_bytes()[0])
            .collect()
    }
}
