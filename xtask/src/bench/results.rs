use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use super::{
    arena::{Arena, Contestant},
    load::Outcome,
};

/// A discipline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Metric {
    Bulk1,
    Bulk8,
    /// Between ends that touch no byte.
    Pages1,
    Pages8,
    PingPong,
    Connections,
    Memory,
}

impl Metric {
    pub const ALL: [Self; 7] = [
        Self::Bulk1,
        Self::Bulk8,
        Self::Pages1,
        Self::Pages8,
        Self::PingPong,
        Self::Connections,
        Self::Memory,
    ];

    /// Those that are a load of some seconds.
    pub const LOADS: [Self; 6] =
        [Self::Bulk1, Self::Bulk8, Self::Pages1, Self::Pages8, Self::PingPong, Self::Connections];

    pub fn title(self) -> &'static str {
        match self {
            Self::Bulk1 => "1 stream, Gbit/s",
            Self::Bulk8 => "8 streams, Gbit/s",
            Self::Pages1 => "1 stream, zero-copy ends, Gbit/s",
            Self::Pages8 => "8 streams, zero-copy ends, Gbit/s",
            Self::PingPong => "64 B × 32, 1000/s",
            Self::Connections => "new connections, 1000/s",
            Self::Memory => "idle connection, KiB",
        }
    }

    pub fn more_is_better(self) -> bool {
        self != Self::Memory
    }

    pub(super) fn measure(self, arena: &mut Arena, seconds: f64) -> Result<Outcome> {
        match self {
            Self::Bulk1 => arena.bulk(1, false, seconds),
            Self::Bulk8 => arena.bulk(8, false, seconds),
            Self::Pages1 => arena.bulk(1, true, seconds),
            Self::Pages8 => arena.bulk(8, true, seconds),
            Self::PingPong => arena.echo(32, seconds),
            Self::Connections => arena.churn(64, seconds),
            Self::Memory => Ok(Outcome::default()),
        }
    }

    /// Bytes or events a second, or bytes, in the unit of the title.
    fn scaled(self, raw: f64) -> f64 {
        match self {
            Self::Bulk1 | Self::Bulk8 | Self::Pages1 | Self::Pages8 => raw * 8.0 / 1e9,
            Self::PingPong | Self::Connections => raw / 1e3,
            Self::Memory => raw / 1024.0,
        }
    }
}

/// Middle and extremes of some samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Summary {
    /// Of no samples there is none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) };
        Some(Self { median, min, max })
    }
}

/// All samples, in the units of the titles.
#[derive(Default)]
pub struct Results {
    samples: BTreeMap<(Metric, &'static str), Vec<f64>>,
    /// Every load as it was counted, for the JSON.
    pub outcomes: Vec<(&'static str, Metric, Outcome)>,
}

impl Results {
    pub fn add(&mut self, contestant: Contestant, metric: Metric, raw: f64) {
        self.samples.entry((metric, contestant.name())).or_default().push(metric.scaled(raw));
    }

    pub fn add_load(&mut self, contestant: Contestant, metric: Metric, outcome: &Outcome) {
        self.add(contestant, metric, outcome.units as f64 / outcome.seconds);
        self.outcomes.push((contestant.name(), metric, outcome.clone()));
    }

    pub fn samples(&self, contestant: Contestant, metric: Metric) -> &[f64] {
        self.samples.get(&(metric, contestant.name())).map(Vec::as_slice).unwrap_or_default()
    }

    pub fn summary(&self, contestant: Contestant, metric: Metric) -> Option<Summary> {
        Summary::of(self.samples(contestant, metric))
    }

    /// The best of HAProxy's set-ups in this discipline.
    pub fn best_haproxy(&self, metric: Metric) -> Option<(Contestant, Summary)> {
        let all = Contestant::ALL.into_iter().filter(|contestant| contestant.is_haproxy());
        let measured = all.filter_map(|contestant| Some((contestant, self.summary(contestant, metric)?)));
        measured.reduce(|best, other| {
            let better = (other.1.median > best.1.median) == metric.more_is_better();
            if better { other } else { best }
        })
    }

    /// How Sheer does against HAProxy at its best; above 1 is better, also where less is better.
    pub fn against_haproxy(&self, metric: Metric) -> Option<f64> {
        self.against(metric, self.best_haproxy(metric)?.1.median)
    }

    /// How Sheer does against no proxy at all.
    pub fn against_routing(&self, metric: Metric) -> Option<f64> {
        self.against(metric, self.summary(Contestant::Routing, metric)?.median)
    }

    fn against(&self, metric: Metric, other: f64) -> Option<f64> {
        let own = self.summary(Contestant::Sheer, metric)?.median;
        let (above, below) = if metric.more_is_better() { (own, other) } else { (other, own) };
        (below > 0.0).then(|| above / below)
    }

    /// Connections that broke, by contestant; none is the rule.
    pub fn failures(&self) -> BTreeMap<&'static str, u64> {
        let mut failures = BTreeMap::new();
        for (name, _, outcome) in self.outcomes.iter().filter(|(_, _, outcome)| outcome.failed > 0) {
            *failures.entry(*name).or_default() += outcome.failed;
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(Summary::of(&[4.0, 1.0, 3.0, 2.0]), Some(Summary { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn ratios_are_against_the_best_haproxy_and_above_one_is_better() {
        let mut results = Results::default();
        for (contestant, memory, bulk) in [
            (Contestant::Sheer, 512.0, 4e9),
            (Contestant::Haproxy { threads: 1, splice: false }, 4096.0, 1e9),
            (Contestant::Haproxy { threads: 2, splice: true }, 8192.0, 2e9),
        ] {
            results.add(contestant, Metric::Memory, memory);
            results.add(contestant, Metric::Bulk1, bulk);
        }
        assert_eq!(results.against_haproxy(Metric::Memory), Some(8.0));
        assert_eq!(results.against_haproxy(Metric::Bulk1), Some(2.0));
        assert_eq!(results.against_routing(Metric::Bulk1), None);
    }
}
