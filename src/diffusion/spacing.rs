//! Which timesteps a sampler visits (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", table 2, arXiv
//! 2305.08891).

use super::Error;
use super::config::Fields;
use super::numerics::{descending, linspace};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Linspace,
    Leading,
    Trailing,
}

pub(super) use Kind::{Leading, Linspace, Trailing};

#[derive(Debug, Clone, Copy)]
pub(super) struct Spacing {
    pub kind: Kind,
    /// `steps_offset`, added with [`Leading`].
    offset: i64,
    /// `num_train_timesteps`.
    train_timesteps: usize,
}

impl Spacing {
    pub fn read(
        fields: &Fields<'_>,
        default: Kind,
        train_timesteps: usize,
    ) -> Result<Spacing, Error> {
        let kinds = [
            ("linspace", Linspace),
            ("leading", Leading),
            ("trailing", Trailing),
        ];
        Ok(Spacing {
            kind: fields.choice("timestep_spacing", default, &kinds)?,
            offset: fields.whole("steps_offset", 0, -1000)?,
            train_timesteps,
        })
    }

    /// `steps` whole timesteps, descending, as DDPM and DDIM space them.
    pub fn whole(&self, steps: usize) -> Vec<i64> {
        let last = self.train_timesteps;
        match self.kind {
            Linspace => rounded(linspace(0.0, (last - 1) as f64, steps).into_iter().rev()),
            Leading => self.multiples(last / steps, 0..steps),
            Trailing => self.trailing(last, steps),
        }
    }

    /// `steps` whole timesteps below `last`, descending, as multistep solvers space them: as if there were one step more, at 0.
    pub fn whole_without_zero(&self, steps: usize, last: usize) -> Vec<i64> {
        match self.kind {
            Linspace => {
                let all = linspace(0.0, last as f64 - 1.0, steps + 1);
                rounded(all.into_iter().skip(1).rev())
            }
            Leading => self.multiples(last / (steps + 1), 1..steps + 1),
            Trailing => self.trailing(last, steps),
        }
    }

    /// Timesteps with fractions, descending, as the Euler schedulers space them.
    pub fn fractional(&self, steps: usize) -> Vec<f32> {
        match self.kind {
            Linspace => {
                let all = linspace(0.0, (self.train_timesteps - 1) as f64, steps);
                all.into_iter().rev().map(|t| t as f32).collect()
            }
            Leading | Trailing => self.whole(steps).into_iter().map(|t| t as f32).collect(),
        }
    }

    fn multiples(&self, ratio: usize, factors: std::ops::Range<usize>) -> Vec<i64> {
        let timestep = |factor: usize| (factor * ratio) as i64 + self.offset;
        factors.rev().map(timestep).collect()
    }

    fn trailing(&self, last: usize, steps: usize) -> Vec<i64> {
        let ratio = self.train_timesteps as f64 / steps as f64;
        let all = rounded(descending(last as f64, ratio).into_iter());
        all.into_iter().map(|t| t - 1).collect()
    }
}

fn rounded(values: impl Iterator<Item = f64>) -> Vec<i64> {
    values.map(|t| t.round_ties_even() as i64).collect()
}
