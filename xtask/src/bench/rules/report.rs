use super::{
    super::report::{Table, figure, ratio},
    Contestant, Discipline, Results,
};

/// How it was measured, as far as the figures mean nothing without it.
const METHOD: [&str; 6] = [
    "The same 10,000 IPv4 prefixes and one port for all, with a fixed seed, disjoint; the server's own address is the last of \
     them. The lists as everybody gets them are in `target/bench/rules/`. Sheer has them in one service, or shared out among \
     4,096, the most that it takes.",
    "nftables: an interval set in a prerouting chain, by the TPROXY recipe: established connections by `socket transparent`, \
     new ones by `tcp dport … ip daddr @set … tproxy`. iptables: the same recipe, a rule for each prefix, loaded by \
     iptables-restore. Behind both HAProxy with 2 threads, which matters only in the last row.",
    "Crossing traffic goes to the port in the rules, at addresses that none of them names. Segments: 104-byte TCP packets of \
     256 connections that nobody has, from a raw socket; one CPU works on each packet to its end before it sends the next, so \
     that the rate is the inverse of what a packet costs, sending and swallowing it included. None of them is merged with \
     another.",
    "Connections: connect, 64 bytes, 64 bytes back, FIN by the client; 64 at the same time. In the last row they go through the \
     proxy, by the last rule of the list.",
    "In each load the owner's own count of the last rule's hits, and the kernel's of connections opened in the middle, \
     say that crossing traffic hit nothing and that every taken connection hit the last rule and went through the proxy; \
     every segment was forwarded.",
    "Ratios above 1 are in Sheer's favour.",
];

/// The results as tables, for the terminal and in Markdown.
pub struct Shown<'a>(pub &'a Results);

impl Shown<'_> {
    pub fn tables(&self) -> [Table; 2] {
        [self.figures(), self.ratios()]
    }

    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<_> = METHOD.map(str::to_owned).into();
        for contestant in Contestant::ALL {
            let failed = self.0.failed(contestant);
            if failed > 0 {
                notes.push(format!("{}: {failed} connections failed.", contestant.name()));
            }
        }
        notes
    }

    fn figures(&self) -> Table {
        let names = Contestant::ALL.map(|contestant| contestant.name().to_owned());
        let row = |title: &str, cell: &dyn Fn(Contestant) -> String| {
            let cells = Contestant::ALL.into_iter().map(cell);
            std::iter::once(title.to_owned()).chain(cells).collect::<Vec<_>>()
        };
        let mut rows = Vec::new();
        for discipline in Discipline::ALL {
            rows.push(row(discipline.title(), &|contestant| figure(self.0.summary(contestant, discipline))));
            if discipline == Discipline::Segments {
                rows.push(row("… added to each, ns", &|contestant| match self.0.added_ns(contestant) {
                    Some(ns) if contestant != Contestant::Routing => format!("{ns:.0}"),
                    _ => "–".into(),
                }));
            }
        }
        Table { header: std::iter::once(String::new()).chain(names).collect(), rows }
    }

    fn ratios(&self) -> Table {
        let others = [Contestant::Routing, Contestant::Set, Contestant::Chain];
        let sheers = [Contestant::OneService, Contestant::ManyServices];
        let pairs: Vec<_> = sheers.iter().flat_map(|one| others.map(|other| (*one, other))).collect();
        let header = pairs.iter().map(|(one, other)| format!("{} : {}", one.short(), other.short()));
        let rows = Discipline::ALL.map(|discipline| {
            let cells = pairs.iter().map(|(one, other)| ratio(self.0.ratio(*one, *other, discipline)));
            let title = discipline.title().trim_end_matches(", 1000/s");
            std::iter::once(title.to_owned()).chain(cells).collect()
        });
        Table { header: std::iter::once(String::new()).chain(header).collect(), rows: rows.into() }
    }
}
