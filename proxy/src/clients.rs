//! How many connections each client has, for services that limit that.
//!
//! The programs refuse a SYN by the counts that are written here. What they let in meanwhile, because several
//! handshakes were under way at once, is refused at accept: the limit is never passed.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use sheer_common::limit::ClientKey;

/// Where the programs read the counts.
pub trait ClientTable: Send {
    /// A client has so many connections now; zero: it may be forgotten. What cannot be written is not refused by the
    /// programs, only later.
    fn set(&mut self, client: &ClientKey, count: u32);
}

/// A table that nobody reads.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoClientTable;

impl ClientTable for NoClientTable {
    fn set(&mut self, _: &ClientKey, _: u32) {}
}

/// The counts, shared by all workers. Only connections of services with a limit come here.
pub struct Clients(Mutex<Counts>);

struct Counts {
    live: HashMap<ClientKey, u32>,
    table: Box<dyn ClientTable>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clients")
    }
}

impl Clients {
    /// Nobody has a connection yet.
    #[must_use]
    pub fn new(table: Box<dyn ClientTable>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Counts { live: HashMap::new(), table })))
    }

    /// One more connection of a client, if it has fewer than `max`.
    #[must_use]
    pub fn enter(self: &Arc<Self>, client: ClientKey, max: u32) -> Option<Held> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { live, table } = &mut *counts;
        let count = live.entry(client).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        table.set(&client, *count);
        Some(Held { clients: Arc::clone(self), client })
    }

    fn leave(&self, client: &ClientKey) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { live, table } = &mut *counts;
        let Some(count) = live.get_mut(client) else { return };
        *count = count.saturating_sub(1);
        let left = *count;
        if left == 0 {
            live.remove(client);
        }
        table.set(client, left);
    }
}

/// A connection that counts, until it is dropped.
#[derive(Debug)]
pub struct Held {
    clients: Arc<Clients>,
    client: ClientKey,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.clients.leave(&self.client);
    }
}

#[cfg(test)]
mod tests {
    use sheer_common::abi::{Address, Family};

    use super::*;

    struct Told(Arc<Mutex<Vec<u32>>>);

    impl ClientTable for Told {
        fn set(&mut self, _: &ClientKey, count: u32) {
            self.0.lock().unwrap().push(count);
        }
    }

    #[test]
    fn a_client_has_no_more_than_it_may_and_the_programs_are_told() {
        let told = Arc::default();
        let clients = Clients::new(Box::new(Told(Arc::clone(&told))));
        let key = |last| ClientKey::new(1, Family::V4, &Address::v4([192, 0, 2, last]), 32);
        let first = clients.enter(key(1), 2).unwrap();
        let second = clients.enter(key(1), 2).unwrap();
        assert!(clients.enter(key(1), 2).is_none());
        let other = clients.enter(key(2), 2).unwrap();
        drop(first);
        let third = clients.enter(key(1), 2).unwrap();
        drop((second, third, other));
        assert_eq!(*told.lock().unwrap(), [1, 2, 1, 1, 2, 1, 0, 0]);
    }
}
