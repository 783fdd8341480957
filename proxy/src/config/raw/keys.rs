//! The keys of one table, taken by name and type.

use std::borrow::Cow;

use toml::de::{DeArray, DeInteger, DeTable, DeValue};

use super::unknown;
use crate::config::collect::{Collector, Spot};

/// The value of a key, and where it stands.
#[derive(Debug)]
pub(in crate::config) struct Field<T> {
    pub spot: Spot,
    pub value: T,
}

/// An element of a list, and the byte at which it stands.
#[derive(Debug)]
pub(in crate::config) struct Item<T> {
    pub at: usize,
    pub value: T,
}

pub(super) struct Keys<'t, 'f> {
    table: &'t DeTable<'t>,
    path: String,
    pub found: &'f mut Collector,
}

impl<'t, 'f> Keys<'t, 'f> {
    /// Reports the keys that are not among the `known` ones.
    pub fn open(table: &'t DeTable<'t>, path: String, known: &[&str], found: &'f mut Collector) -> Self {
        for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            unknown(key, &path, known, found);
        }
        Self { table, path, found }
    }

    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    pub fn full(&self, key: &str) -> String {
        join(&self.path, key)
    }

    fn get(&self, key: &str) -> Option<(Spot, &'t DeValue<'t>)> {
        let value = self.table.get(key)?;
        Some((Spot { at: value.span().start, key: self.full(key) }, value.get_ref()))
    }

    fn wrong_type(&mut self, spot: &Spot, value: &DeValue<'_>, wanted: &str) {
        self.found.add(spot, format!("{} where {wanted}", described(value)));
    }

    pub fn string(&mut self, key: &str, example: &str) -> Option<Field<&'t str>> {
        self.text(key, "a string", example)
    }

    /// A string that is a time.
    pub fn time(&mut self, key: &str, example: &str) -> Option<Field<&'t str>> {
        self.text(key, "a time with its unit, in quotes,", example)
    }

    fn text(&mut self, key: &str, wanted: &str, example: &str) -> Option<Field<&'t str>> {
        let (spot, value) = self.get(key)?;
        if let DeValue::String(text) = value {
            return Some(Field { spot, value: text });
        }
        self.wrong_type(&spot, value, &format!("{wanted} is expected; write for example {key} = {example}"));
        None
    }

    pub fn number(&mut self, key: &str, example: &str) -> Option<Field<i128>> {
        let (spot, value) = self.get(key)?;
        if let DeValue::Integer(number) = value {
            return Some(Field { spot, value: integer(number) });
        }
        self.wrong_type(
            &spot,
            value,
            &format!("a whole number is expected; write for example {key} = {example}"),
        );
        None
    }

    pub fn switch(&mut self, key: &str) -> Option<Field<bool>> {
        let (spot, value) = self.get(key)?;
        if let DeValue::Boolean(on) = value {
            return Some(Field { spot, value: *on });
        }
        self.wrong_type(&spot, value, &format!("true or false is expected; write for example {key} = true"));
        None
    }

    /// A list of strings; a single string is one of one.
    pub fn strings(&mut self, key: &str, example: &str) -> Option<Field<Vec<Item<&'t str>>>> {
        self.list(key, "strings", example, |value| match value {
            DeValue::String(text) => Some(text.as_ref()),
            _ => None,
        })
    }

    /// A list of ports and ranges, or one of them.
    pub fn ports(&mut self, key: &str, example: &str) -> Option<Field<Vec<Item<Cow<'t, str>>>>> {
        self.list(key, "ports", example, |value| match value {
            DeValue::String(text) => Some(Cow::Borrowed(text.as_ref())),
            DeValue::Integer(number) if number.radix() == 10 => Some(Cow::Borrowed(number.as_str())),
            DeValue::Integer(number) => Some(Cow::Owned(integer(number).to_string())),
            _ => None,
        })
    }

    fn list<T>(
        &mut self,
        key: &str,
        of: &str,
        example: &str,
        element: impl Fn(&'t DeValue<'t>) -> Option<T>,
    ) -> Option<Field<Vec<Item<T>>>> {
        let (spot, value) = self.get(key)?;
        let wanted = format!("a list of {of} is expected; write for example {key} = {example}");
        if let Some(value) = element(value) {
            let only = Item { at: spot.at, value };
            return Some(Field { spot, value: vec![only] });
        }
        let DeValue::Array(array) = value else {
            self.wrong_type(&spot, value, &wanted);
            return None;
        };
        let mut items = Vec::with_capacity(array.len());
        for item in array.iter() {
            let at = item.span().start;
            match element(item.get_ref()) {
                Some(value) => items.push(Item { at, value }),
                None => {
                    let spot = Spot { at, key: spot.key.clone() };
                    self.wrong_type(&spot, item.get_ref(), &wanted);
                }
            }
        }
        // With an element of the wrong type the list says nothing about what it would be without.
        (items.len() == array.len()).then_some(Field { spot, value: items })
    }

    /// A table and where it begins.
    pub fn table(&mut self, key: &str) -> Option<(usize, &'t DeTable<'t>)> {
        let (spot, value) = self.get(key)?;
        if let DeValue::Table(table) = value {
            return Some((spot.at, table));
        }
        let wanted = match (value, self.path.is_empty()) {
            (DeValue::Array(array), true) if of_tables(array) => {
                format!("a single table is expected; write [{key}] once, with one pair of brackets")
            }
            (_, true) => {
                format!("a table is expected; write [{key}] on a line of its own and its keys below")
            }
            (_, false) => {
                format!("a table is expected; write for example {key} = {{ new_per_second = 100 }}")
            }
        };
        self.wrong_type(&spot, value, &wanted);
        None
    }

    /// The tables of an array of tables, and where each begins.
    pub fn tables(&mut self, key: &str) -> Vec<(usize, &'t DeTable<'t>)> {
        let Some((spot, value)) = self.get(key) else {
            return Vec::new();
        };
        let wanted =
            format!("a list of tables is expected; write [[{key}]] with two pairs of brackets before each");
        let DeValue::Array(array) = value else {
            self.wrong_type(&spot, value, &wanted);
            return Vec::new();
        };
        if array.is_empty() {
            self.found.add(
                &spot,
                format!("an empty list; write [[{key}]] on a line of its own and its keys below"),
            );
        }
        let mut tables = Vec::with_capacity(array.len());
        for item in array.iter() {
            match item.get_ref() {
                DeValue::Table(table) => tables.push((item.span().start, table)),
                other => {
                    let spot = Spot { at: item.span().start, key: spot.key.clone() };
                    self.wrong_type(&spot, other, &wanted);
                }
            }
        }
        tables
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    const SHOWN: usize = 60;
    let key: String = key.chars().take(SHOWN).collect();
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// What is beyond the largest number is the largest: out of range wherever it stands.
fn integer(number: &DeInteger<'_>) -> i128 {
    let text = number.as_str();
    let beyond = if text.starts_with('-') { i128::MIN } else { i128::MAX };
    i128::from_str_radix(text, number.radix()).unwrap_or(beyond)
}

fn of_tables(array: &DeArray<'_>) -> bool {
    array.iter().next().is_some_and(|first| matches!(first.get_ref(), DeValue::Table(_)))
}

fn described(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(true) => "the word true",
        DeValue::Boolean(false) => "the word false",
        DeValue::Datetime(_) => "a date or a time",
        DeValue::Array(array) if of_tables(array) => "a list of tables",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
