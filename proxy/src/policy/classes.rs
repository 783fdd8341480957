//! Classes, each stored once.

use std::{collections::HashMap, sync::Arc};

use sheer_common::classify::{Class, NO_SERVICE};

use super::CompileError;

/// Most classes of a policy. Each takes 520 bytes of kernel memory.
pub const MAX_CLASSES: usize = 1 << 18;

/// The classes found so far; the first one is of no service.
#[derive(Debug)]
pub(super) struct Classes {
    all: Vec<Arc<Class>>,
    known: HashMap<Arc<Class>, u32>,
    /// What a class becomes with one more service: asked for each prefix, new for few.
    grown: HashMap<(u32, u16), u32>,
}

impl Classes {
    pub(super) fn new() -> Self {
        let mut classes = Self { all: Vec::new(), known: HashMap::new(), grown: HashMap::new() };
        classes.add(Arc::new(Class::EMPTY));
        debug_assert_eq!(classes.known.get(&Class::EMPTY), Some(&NO_SERVICE));
        classes
    }

    fn add(&mut self, class: Arc<Class>) -> u32 {
        let number = self.all.len() as u32;
        self.all.push(Arc::clone(&class));
        self.known.insert(class, number);
        number
    }

    /// The number of a class.
    pub(super) fn number(&mut self, class: Class) -> Result<u32, CompileError> {
        if let Some(&number) = self.known.get(&class) {
            return Ok(number);
        }
        if self.all.len() == MAX_CLASSES {
            return Err(CompileError::TooManyClasses);
        }
        Ok(self.add(Arc::new(class)))
    }

    /// The number of the class of these services.
    pub(super) fn of(&mut self, services: impl Iterator<Item = usize>) -> Result<u32, CompileError> {
        let mut class = Class::EMPTY;
        services.for_each(|service| class.insert(service));
        self.number(class)
    }

    /// The number of a class with one more service in it.
    pub(super) fn with(&mut self, class: u32, service: u16) -> Result<u32, CompileError> {
        if let Some(&number) = self.grown.get(&(class, service)) {
            return Ok(number);
        }
        let mut grown = *self.all[class as usize];
        grown.insert(service.into());
        let number = self.number(grown)?;
        self.grown.insert((class, service), number);
        Ok(number)
    }

    pub(super) fn into_vec(self) -> Vec<Arc<Class>> {
        self.all
    }
}
