//! The plots: every contestant in every discipline, as a share of the best one.

use std::fmt::Write;

use super::{
    arena::Contestant,
    results::{Metric, Results},
    rules,
};

const SHEER: &str = "#2a9d8f";
const ROUTING: &str = "#b0b0b0";
const OTHER: &str = "#e9a13b";

const LEFT: f64 = 20.0;
const BAR: f64 = 420.0;
const STEP: f64 = 18.0;
const GAP: f64 = 16.0;

/// A discipline: its title, and who did how well in it.
struct Group {
    title: &'static str,
    bars: Vec<Bar>,
}

struct Bar {
    name: &'static str,
    colour: &'static str,
    value: f64,
    /// More is better.
    score: f64,
}

/// Everybody in all disciplines of the first part.
pub fn ratios(results: &Results) -> String {
    let bar = |contestant: Contestant, metric: Metric| {
        let value = results.summary(contestant, metric)?.median;
        let score = if metric.more_is_better() { value } else { 1.0 / value };
        let colour = match contestant {
            Contestant::Sheer => SHEER,
            Contestant::Routing => ROUTING,
            Contestant::Haproxy { .. } => OTHER,
        };
        score.is_finite().then_some(Bar { name: contestant.name(), colour, value, score })
    };
    draw(&Metric::ALL.map(|metric| Group {
        title: metric.title(),
        bars: Contestant::ALL.into_iter().filter_map(|contestant| bar(contestant, metric)).collect(),
    }))
}

/// The same of 10,000 rules.
pub fn rules(results: &rules::Results) -> String {
    let bar = |contestant: rules::Contestant, discipline| {
        let value = results.summary(contestant, discipline)?.median;
        let colour = match contestant {
            rules::Contestant::Routing => ROUTING,
            _ if contestant.is_sheer() => SHEER,
            _ => OTHER,
        };
        Some(Bar { name: contestant.name(), colour, value, score: value })
    };
    draw(&rules::Discipline::ALL.map(|discipline| Group {
        title: discipline.title(),
        bars: rules::Contestant::ALL.into_iter().filter_map(|who| bar(who, discipline)).collect(),
    }))
}

/// Bars in an SVG that reads on light and on dark ground. Longer is better.
fn draw(groups: &[Group]) -> String {
    let mut text = String::new();
    let mut y = GAP;
    for Group { title, bars } in groups {
        let best = bars.iter().map(|bar| bar.score).fold(0.0, f64::max);
        // Writing to a String does not fail.
        let _ = writeln!(text, r#"<text x="0" y="{:.0}" font-weight="bold">{title}</text>"#, y + 12.0);
        y += STEP;
        for Bar { name, colour, value, score } in bars {
            let width = (score / best * BAR).max(1.0);
            let _ = writeln!(
                text,
                r#"<rect x="{LEFT}" y="{y:.0}" width="{width:.0}" height="14" fill="{colour}"/><text x="{:.0}" y="{:.0}">{value:.1} {name}</text>"#,
                LEFT + width + 6.0,
                y + 12.0,
            );
            y += STEP;
        }
        y += GAP;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {y:.0}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#808080\">\n{text}</svg>\n",
        width = LEFT + BAR + 180.0,
    )
}
