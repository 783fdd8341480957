use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    super::{load::Outcome, results::Summary},
    Contestant, Discipline,
};

/// All outcomes.
#[derive(Default)]
pub struct Results(BTreeMap<(Discipline, Contestant), Vec<Outcome>>);

impl Results {
    pub fn add(&mut self, contestant: Contestant, discipline: Discipline, outcome: Outcome) {
        self.0.entry((discipline, contestant)).or_default().push(outcome);
    }

    /// Thousands a second.
    pub fn samples(&self, contestant: Contestant, discipline: Discipline) -> Vec<f64> {
        let outcomes = self.0.get(&(discipline, contestant)).into_iter().flatten();
        outcomes.map(|outcome| outcome.units as f64 / outcome.seconds / 1e3).collect()
    }

    pub fn summary(&self, contestant: Contestant, discipline: Discipline) -> Option<Summary> {
        Summary::of(&self.samples(contestant, discipline))
    }

    /// One against another; above 1 is better.
    pub fn ratio(&self, one: Contestant, other: Contestant, discipline: Discipline) -> Option<f64> {
        let median = |contestant| Some(self.summary(contestant, discipline)?.median);
        let (one, other) = (median(one)?, median(other)?);
        (other > 0.0).then(|| one / other)
    }

    /// What a contestant adds to a segment that passes, beside plain routing: nanoseconds. They are sent one after the
    /// other, so that the time for one is the inverse of the rate.
    pub fn added_ns(&self, contestant: Contestant) -> Option<f64> {
        let each = |contestant| Some(1e6 / self.summary(contestant, Discipline::Segments)?.median);
        Some(each(contestant)? - each(Contestant::Routing)?)
    }

    /// Connections that broke, or segments that were not sent.
    pub fn failed(&self, contestant: Contestant) -> u64 {
        let own = self.0.iter().filter(|((_, of), _)| *of == contestant);
        own.flat_map(|(_, outcomes)| outcomes).map(|outcome| outcome.failed).sum()
    }

    pub fn as_json(&self) -> Value {
        let discipline = |discipline: Discipline| {
            let contestants = Contestant::ALL.map(|contestant| {
                json!({
                    "name": contestant.name(),
                    "summary": self.summary(contestant, discipline),
                    "samples": self.samples(contestant, discipline),
                    "outcomes": self.0.get(&(discipline, contestant)),
                })
            });
            json!({ "name": discipline.title(), "contestants": contestants })
        };
        json!({
            "disciplines": Discipline::ALL.map(discipline),
            "added_ns": Contestant::ALL.map(|contestant| json!([contestant.name(), self.added_ns(contestant)])),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_the_difference_of_the_times_for_one() {
        let mut results = Results::default();
        for (contestant, units) in [(Contestant::Routing, 1_000_000), (Contestant::Set, 500_000)] {
            let outcome = Outcome { units, seconds: 1.0, ..Outcome::default() };
            results.add(contestant, Discipline::Segments, outcome);
        }
        assert_eq!(results.added_ns(Contestant::Set), Some(1000.0));
        assert_eq!(results.added_ns(Contestant::Chain), None);
    }
}
