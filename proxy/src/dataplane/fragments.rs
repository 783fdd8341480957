//! Sweeping the maps `fragments` and `held`.
//!
//! The programs take no notice of what is old, but only room that is swept takes in something new.

use aya::maps::HashMap;
use sheer_common::{
    abi::Settings,
    fragment::{FragmentKey, Fragments, Held, HeldKey},
};

use super::{
    Dataplane, DataplaneError,
    flows::monotonic_ns,
    object::{map, refused_entry},
};

impl Dataplane {
    /// Removes what is old: of datagrams whose last fragment never came, and fragments that waited in vain. Two system
    /// calls where there is nothing, as nearly always.
    ///
    /// # Errors
    /// When a map cannot be had; entries that go by themselves meanwhile are no failure.
    pub fn sweep_fragments(&mut self) -> Result<(), DataplaneError> {
        let now = monotonic_ns();
        let mut notes = HashMap::<_, FragmentKey, Fragments>::try_from(self.map_mut(map::FRAGMENTS)?)
            .map_err(refused_entry(map::FRAGMENTS))?;
        let old: Vec<_> =
            notes.iter().filter_map(Result::ok).filter(|(_, note)| note.until_ns <= now).collect();
        for (key, _) in old {
            let _ = notes.remove(&key);
        }
        let mut held = HashMap::<_, HeldKey, Held>::try_from(self.map_mut(map::HELD)?)
            .map_err(refused_entry(map::HELD))?;
        let is_old = |key: &HeldKey| held.get(key, 0).is_ok_and(|fragment| fragment.until_ns <= now);
        let old: Vec<_> = held.keys().filter_map(Result::ok).filter(is_old).collect();
        for key in old {
            let _ = held.remove(&key);
        }
        Ok(())
    }

    /// What decides about fragments of which no service is known: see [`Settings::closed`].
    ///
    /// # Errors
    /// When the map refuses.
    pub fn set_closed(&mut self, closed: bool) -> Result<(), DataplaneError> {
        let now = self.settings()?;
        self.set_settings(Settings { closed: closed.into(), ..now })
    }
}
