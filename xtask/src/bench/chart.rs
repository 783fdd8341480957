//! The plot: every contestant in every discipline, as a share of the best one.

use std::fmt::Write;

use super::{
    arena::Contestant,
    results::{Metric, Results},
};

const LEFT: f64 = 230.0;
const BAR: f64 = 420.0;
const STEP: f64 = 18.0;
const GAP: f64 = 16.0;

/// Bars in an SVG that reads on light and on dark ground. Longer is better: where less is better, the bar is the
/// inverse.
pub fn ratios(results: &Results) -> String {
    let mut bars = String::new();
    let mut y = GAP;
    for metric in Metric::ALL {
        let scores = Contestant::ALL.map(|contestant| (contestant, score(results, contestant, metric)));
        let best = scores.iter().filter_map(|(_, score)| *score).fold(0.0, f64::max);
        // Writing to a String does not fail.
        let _ =
            writeln!(bars, r#"<text x="0" y="{:.0}" font-weight="bold">{}</text>"#, y + 12.0, metric.title());
        for (contestant, score) in scores {
            let Some(score) = score.filter(|_| best > 0.0) else { continue };
            bar(&mut bars, y, contestant, score / best, results, metric);
            y += STEP;
        }
        y += GAP;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {y:.0}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#808080\">\n{bars}</svg>\n",
        width = LEFT + BAR + 180.0,
    )
}

fn bar(bars: &mut String, y: f64, contestant: Contestant, share: f64, results: &Results, metric: Metric) {
    let colour = match contestant {
        Contestant::Sheer => "#2a9d8f",
        Contestant::Routing => "#b0b0b0",
        Contestant::Haproxy { .. } => "#e9a13b",
    };
    let width = (share * BAR).max(1.0);
    let value = results.summary(contestant, metric).map_or(0.0, |summary| summary.median);
    let _ = writeln!(
        bars,
        r#"<rect x="{LEFT}" y="{y:.0}" width="{width:.0}" height="14" fill="{colour}"/><text x="{:.0}" y="{:.0}">{value:.1} {}</text>"#,
        LEFT + width + 6.0,
        y + 12.0,
        contestant.name(),
    );
}

fn score(results: &Results, contestant: Contestant, metric: Metric) -> Option<f64> {
    let median = results.summary(contestant, metric)?.median;
    if metric.more_is_better() { Some(median) } else { (median > 0.0).then(|| 1.0 / median) }
}
