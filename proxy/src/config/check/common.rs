//! What all checks share.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use ipnet::IpNet;

use crate::config::{
    Prefixes,
    collect::{Collector, Spot},
    prefixes::{MAX_PREFIXES, parse_prefix, read_prefixes},
    raw::{Field, Item},
    values,
};

pub(super) struct Check<'f> {
    directory: &'f Path,
    pub found: &'f mut Collector,
    /// How many more prefixes fit.
    room: usize,
}

impl<'f> Check<'f> {
    pub fn new(directory: &'f Path, found: &'f mut Collector) -> Self {
        Self { directory, found, room: MAX_PREFIXES }
    }

    /// The value, checked; `None` if it is not there, or wrong and reported.
    pub fn value<R: Copy, T>(
        &mut self,
        field: Option<&Field<R>>,
        check: impl FnOnce(R) -> Result<T, String>,
    ) -> Option<T> {
        let field = field?;
        check(field.value).map_err(|what| self.found.add(&field.spot, what)).ok()
    }

    pub fn choice<T: Copy>(&mut self, field: Option<&Field<&str>>, among: &[(&str, T)]) -> Option<T> {
        self.value(field, |text| values::choice(text, among))
    }

    /// The elements of a list, each checked; `None` if it is not there, empty, or an element is wrong.
    pub fn list<R, T>(
        &mut self,
        field: Option<&Field<Vec<Item<R>>>>,
        if_empty: &str,
        check: impl Fn(&R) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let Field { spot, value: items } = field?;
        if items.is_empty() {
            self.found.add(spot, if_empty);
            return None;
        }
        let mut checked = Vec::with_capacity(items.len());
        for item in items {
            match check(&item.value) {
                Ok(value) => checked.push(value),
                Err(what) => self.found.add_at(item.at, &spot.key, what),
            }
        }
        (checked.len() == items.len()).then_some(checked)
    }

    /// Reports what stands twice in a list of names.
    pub fn twice(&mut self, field: Option<&Field<Vec<Item<&str>>>>) {
        let Some(Field { spot, value: items }) = field else {
            return;
        };
        let mut before = std::collections::HashSet::new();
        for item in items {
            if !before.insert(item.value) {
                let what = format!("{} is listed twice", crate::config::error::quoted(item.value));
                self.found.add_at(item.at, &spot.key, what);
            }
        }
    }

    /// The prefixes of a list and of a file, together; `None` if neither is there, or something is wrong.
    pub fn prefixes(
        &mut self,
        list: Option<&Field<Vec<Item<&str>>>>,
        file: Option<&Field<&str>>,
    ) -> Option<Prefixes> {
        let mut prefixes = Prefixes::default();
        let empty = "an empty list matches nothing; leave the key out for any";
        // A file may fill what the list leaves empty.
        let list = list.filter(|list| file.is_none() || !list.value.is_empty());
        let listed: Option<Vec<IpNet>> =
            self.list(list, empty, |text| parse_prefix(text).map_err(|e| e.to_string()));
        let mut fine = list.is_some() == listed.is_some();
        let listed = listed.unwrap_or_default();
        if let (Some(list), true) = (list, listed.len() > self.room) {
            self.beyond(&list.spot, listed.len());
            fine = false;
        }
        self.room = self.room.saturating_sub(listed.len());
        for prefix in listed {
            prefixes.push(prefix);
        }
        if let Some(file) = file {
            fine &= self.file(file, &mut prefixes).is_some();
        }
        (fine && !prefixes.is_empty()).then_some(prefixes)
    }

    fn beyond(&mut self, spot: &Spot, more: usize) {
        let before = MAX_PREFIXES - self.room;
        self.found.add(
            spot,
            format!(
                "{more} prefixes, with {before} before them; at most {MAX_PREFIXES} in all are possible: put \
                 neighbours together into shorter prefixes"
            ),
        );
    }

    /// Reads a file of prefixes; `None` if something is wrong with it.
    fn file(&mut self, Field { spot, value: name }: &Field<&str>, into: &mut Prefixes) -> Option<()> {
        let path = self.directory.join(name);
        let shown = path.display().to_string();
        let opened = open(name, &path).map_err(|what| self.found.add(spot, what)).ok()?;
        let mut new = Prefixes::default();
        let lines = read_prefixes(opened, &mut new, self.room)
            .map_err(|e| self.found.add(spot, format!("reading {shown}: {e}; try: cat {shown} > /dev/null")))
            .ok()?;
        if lines.prefixes > self.room {
            self.beyond(spot, lines.prefixes);
        }
        if lines.prefixes == 0 && lines.bad.is_empty() {
            let what =
                format!("{shown} holds no prefix, so that nothing would match; leave the key out for any");
            self.found.add(spot, what);
        }
        let fine = lines.bad.is_empty() && (1..=self.room).contains(&lines.prefixes);
        let last = lines.bad.last().map(|bad| bad.place);
        for bad in lines.bad {
            self.found.elsewhere(spot, &shown, bad.place, bad.what);
        }
        if let (Some(place), 1..) = (last, lines.more) {
            self.found.elsewhere(
                spot,
                &shown,
                place,
                format!("and {} more bad lines after this one", lines.more),
            );
        }
        self.room = self.room.saturating_sub(lines.prefixes);
        into.v4.append(&mut new.v4);
        into.v6.append(&mut new.v6);
        fine.then_some(())
    }
}

fn open(name: &str, path: &Path) -> Result<File, String> {
    let shown = path.display();
    if name.is_empty() {
        return Err("an empty name; write the name of a file of prefixes, one a line".into());
    }
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no file {shown}; relative names begin where the configuration file stands")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{shown} may not be read: {e}; look with: namei -l {shown}")
        }
        _ => format!("{shown} cannot be opened: {e}"),
    };
    // Before it is opened: a pipe would make us wait for its writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(format!("{shown} is no regular file; name a file of prefixes, one a line"));
    }
    File::open(path).map_err(failed)
}
