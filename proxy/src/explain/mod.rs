//! `sheer explain`: what becomes of a packet, and why.
//!
//! The loaded programs decide, on a crafted packet that changes nothing (BPF_PROG_TEST_RUN). Why they decided so is told
//! from the config by plain loops, which know nothing of the programs' tables: where the two contradict each other, that
//! is said. What happens behind the programs is asked of the kernel.
//!
//! - [`frame`]: the packet
//! - [`reference`](mod@reference): first match in plain loops
//! - [`reasons`]: which services missed, and by what
//! - [`answer`]: the steps, as the control socket has them
//!
//! For people the answer is its [`std::fmt::Display`].

pub mod answer;
pub mod frame;
mod place;
pub mod reasons;
pub mod reference;
mod show;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use sheer_common::{abi::Settings, explain::Explanation, verdict::Verdict};

pub use self::{answer::Answer, place::Place};
use self::{
    answer::{Account, Blocked, Disagreement, Next, Packet},
    reasons::Services,
    reference::Destination,
};
use crate::{
    config::{Config, Protocol},
    dataplane::{Dataplane, DataplaneError},
    policy::Policy,
    route::{AddressSet, RouteError},
};

/// The client's port where none was named.
pub const ANY_PORT: u16 = 40000;

/// A packet that is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The client.
    pub from: IpAddr,
    /// Its port; none: [`ANY_PORT`].
    pub from_port: Option<u16>,
    /// Whom it asks for.
    pub to: SocketAddr,
    /// TCP: a SYN. UDP: an empty datagram.
    pub protocol: Protocol,
    /// Where it comes in; none: where the answer would go out.
    pub interface: Option<String>,
}

/// No answer.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// No packet has such addresses.
    #[error("{from} and {to} are addresses of different families: no packet goes from one to the other")]
    Families {
        /// The client.
        from: IpAddr,
        /// Whom it asks for.
        to: IpAddr,
    },
    /// Nobody knows where it comes in.
    #[error(
        "this host has no route to {0}, so that its packets could come in anywhere: name the interface with -i"
    )]
    NoWayBack(IpAddr),
    /// The program ran and wrote nothing.
    #[error("the kernel programs gave no answer: they have no settings; restart the instance")]
    Silent,
    /// Links, routes, rules.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// Programs and maps.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
}

impl Question {
    /// A question that makes sense. An IPv4-mapped address counts as IPv4.
    ///
    /// # Errors
    /// [`ExplainError::Families`].
    pub fn new(
        from: IpAddr,
        from_port: Option<u16>,
        to: SocketAddr,
        protocol: Protocol,
        interface: Option<String>,
    ) -> Result<Self, ExplainError> {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let question = Self { from: from.to_canonical(), from_port, to, protocol, interface };
        question.frame().map(|_| question)
    }

    fn packet(&self) -> Packet {
        let from = SocketAddr::new(self.from, self.from_port.unwrap_or(ANY_PORT));
        Packet { protocol: self.protocol, from, to: self.to }
    }

    fn frame(&self) -> Result<Vec<u8>, ExplainError> {
        let Packet { protocol, from, to } = self.packet();
        frame::frame(protocol, from, to).ok_or(ExplainError::Families { from: from.ip(), to: to.ip() })
    }
}

/// What is in force: one and the same in all three.
pub struct InForce<'a> {
    /// What shall be done.
    pub config: &'a Config,
    /// What was made of it.
    pub policy: &'a Policy,
    /// This host's own addresses.
    pub own: &'a AddressSet,
}

/// An answer that lacks only its last step, which is the kernel's to tell.
pub struct Decided {
    answer: Answer,
    settings: Settings,
    place: Place,
}

impl InForce<'_> {
    /// Asks the programs, and says why they answer as they do.
    ///
    /// # Errors
    /// When they cannot be asked.
    pub fn ask(
        &self,
        dataplane: &mut Dataplane,
        question: &Question,
        place: Place,
    ) -> Result<Decided, ExplainError> {
        let told = dataplane.explain(&question.frame()?, place.looked_at())?;
        let settings = dataplane.settings()?;
        let place_in_list = (told.verdict as usize).checked_sub(1);
        let verdict = place_in_list.and_then(|at| Verdict::ALL.get(at)).ok_or(ExplainError::Silent)?;
        let found = (told.service as usize).checked_sub(1);
        let packet = reference::Packet {
            protocol: question.protocol,
            from: question.from,
            to: question.to,
            interface: place.listed(),
        };
        let answer = Answer {
            packet: question.packet(),
            interface: place.shown(),
            destination: Destination::of(question.to.ip(), self.own),
            services: Services::of(self.config, self.own, &packet, found),
            socket: told.socket.into(),
            limit: self.account(dataplane, found, question)?,
            blocked_by_hand: dataplane
                .blocked_by_hand(question.from)?
                .map(|(block, now_ns)| Blocked::of(&block, now_ns)),
            verdict: *verdict,
            worker: told.worker.checked_sub(1),
            draining: settings.draining != 0,
            next: Next::Dropped,
            disagreements: self.disagreements(&told, &packet),
        };
        Ok(Decided { answer, settings, place })
    }

    fn account(
        &self,
        dataplane: &mut Dataplane,
        found: Option<usize>,
        question: &Question,
    ) -> Result<Option<Account>, DataplaneError> {
        let service = found.and_then(|index| self.config.services.get(index));
        let in_force = found.and_then(|index| self.policy.services().get(index));
        let (Some(limit), Some(service)) = (service.and_then(|s| s.limit.as_ref()), in_force) else {
            return Ok(None);
        };
        let known = dataplane.known_client(service.id, &service.limit, question.from)?;
        Ok(Some(Account::of(&known, limit, &service.limit)))
    }

    fn disagreements(&self, told: &Explanation, packet: &reference::Packet<'_>) -> Vec<Disagreement> {
        let mut found = Vec::new();
        let number = |index: Option<usize>| index.map(|index| index + 1);
        let config = number(reference::first_match(&self.config.services, self.own, packet));
        let programs = (told.service != 0).then_some(told.service as usize);
        if programs != config {
            found.push(Disagreement::Service { programs, config });
        }
        // Without a generation the programs had no need to look.
        let own = told.own != 0;
        if told.generation != 0 && own != self.own.contains(&packet.to.ip()) {
            found.push(Disagreement::Own { programs: own });
        }
        found
    }
}

impl Decided {
    /// Asks the kernel where the packet goes.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn follow(mut self) -> Result<Answer, ExplainError> {
        let packet = self.answer.packet;
        let verdict = self.answer.verdict;
        self.answer.next = if self.place.listed().is_none() {
            Next::Unseen { onward: self.place.onward(&packet, 0).await? }
        } else if verdict.drops() {
            Next::Dropped
        } else if verdict.steers() {
            self.place.policy_route(&packet, &self.settings).await?
        } else {
            Next::Routed { onward: self.place.onward(&packet, 0).await? }
        };
        Ok(self.answer)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{Action, Prefixes, Service, Timeouts};

    pub(crate) fn service(name: &str) -> Service {
        Service::any(name)
    }

    pub(crate) fn prefixes(list: &str) -> Option<Prefixes> {
        let mut prefixes = Prefixes::default();
        list.split(' ').for_each(|net| prefixes.push(net.parse().unwrap()));
        Some(prefixes)
    }

    pub(crate) fn to(name: &str, destinations: &str) -> Service {
        Service { destinations: prefixes(destinations), ..service(name) }
    }

    pub(crate) fn from(name: &str, clients: &str) -> Service {
        Service { clients: prefixes(clients), ..service(name) }
    }

    pub(crate) fn ports(name: &str, list: &str) -> Service {
        Service { ports: Some(list.parse().unwrap()), ..service(name) }
    }

    pub(crate) fn on(name: &str, interfaces: &[&str]) -> Service {
        Service { interfaces: Some(interfaces.iter().map(ToString::to_string).collect()), ..service(name) }
    }

    pub(crate) fn udp(name: &str) -> Service {
        Service { protocol: Protocol::Udp, action: Action::Pass, ..service(name) }
    }

    pub(crate) fn config(services: &[Service]) -> Config {
        Config {
            when_down: Default::default(),
            instance: "explain".parse().unwrap(),
            file: None,
            interfaces: vec!["eth0".into(), "eth1".into()],
            services: services.to_vec(),
            existing: Default::default(),
            attach: Default::default(),
            mark: None,
            table: None,
            workers: 1,
            max_connections: 1,
            timeouts: Timeouts::default(),
            drain_timeout: Default::default(),
            access_log: Default::default(),
            access_format: Default::default(),
            trace: false,
        }
    }

    fn ask(from: &str, to: &str) -> Result<Question, ExplainError> {
        Question::new(from.parse().unwrap(), Some(7), to.parse().unwrap(), Protocol::Tcp, None)
    }

    #[test]
    fn two_families_are_an_error_and_a_mapped_address_is_none_of_its_own() {
        let error = ask("192.0.2.1", "[2001:db8::1]:80").unwrap_err().to_string();
        assert!(error.contains("192.0.2.1 and 2001:db8::1 are addresses of different families"), "{error}");
        let question = ask("::ffff:192.0.2.1", "203.0.113.1:80").unwrap();
        assert_eq!(question.packet().from.to_string(), "192.0.2.1:7");
    }

    #[test]
    fn a_question_goes_through_the_control_socket() {
        let question = ask("2001:db8::1", "[2001:db8::2]:80").unwrap();
        let text = serde_json::to_string(&question).unwrap();
        assert_eq!(serde_json::from_str::<Question>(&text).unwrap(), question);
    }
}
