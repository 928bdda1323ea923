//! What nobody needs leaves the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use m40_manifest::Catalog;
use m40_store::{Blob, Kept, Pruned, Referenced, Sha256};

use super::{Manifest, Store, StoreError, failed, sync_dir};
use crate::pulls::request_of;
use crate::store::sources::{Key, Record, key_of};

impl Store {
    /// Removes a stored model, and those of its files that no other model needs. Returns it, and how
    /// many bytes that frees.
    pub(crate) fn remove(
        &self,
        name: &str,
        catalog: &Catalog,
    ) -> Result<(Manifest, u64), StoreError> {
        let _one_at_a_time = self.changing();
        let Some(manifest) = self.find(name) else {
            return Err(StoreError::NoModel { name: name.to_owned() });
        };
        let path = self.manifest_path(name);
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        sync_dir(&self.dir.join("models"))?;
        let links = self.dir.join("files").join(name);
        fs::remove_dir_all(&links).map_err(failed("remove", &links))?;
        let needed = self.referenced(catalog);
        let mut freed_bytes = 0;
        let unneeded = manifest.files.iter().filter(|file| !needed.blobs.contains(&file.sha256));
        for blob in unneeded.filter_map(|file| self.blobs.find(&file.sha256)) {
            self.blobs.remove(&blob.sha256)?;
            freed_bytes += freed_with(&blob);
        }
        self.forget_gone(catalog)?;
        Ok((manifest, freed_bytes))
    }

    /// Removes the files that no model needs, or says which those are: what is stored, what
    /// manifests name and what is on its way stays.
    pub(crate) fn prune(&self, catalog: &Catalog, dry_run: bool) -> Result<Pruned, StoreError> {
        let _one_at_a_time = self.changing();
        let needed = self.referenced(catalog);
        if dry_run {
            return Ok(self.blobs.prune_dry_run(&needed, Duration::ZERO)?);
        }
        let pruned = self.blobs.prune(&needed, Duration::ZERO)?;
        self.forget_gone(catalog)?;
        Ok(pruned)
    }

    /// The stored files, and the models that need each.
    pub(crate) fn files(&self, catalog: &Catalog) -> BTreeMap<Sha256, BTreeSet<String>> {
        let mut files: BTreeMap<Sha256, BTreeSet<String>> = BTreeMap::new();
        let mut need = |sha256, name: &str| {
            files.entry(sha256).or_default().insert(name.to_owned());
        };
        for manifest in self.list() {
            manifest.files.iter().for_each(|file| need(file.sha256, &manifest.name));
        }
        for model in catalog.models() {
            let key = key_of(&request_of(&model.definition));
            let record = self.pulls.sources().find(&key);
            let found = record.iter().flat_map(|record| record.files());
            found.for_each(|file| need(file.sha256, &model.definition.name));
        }
        files
    }

    fn referenced(&self, catalog: &Catalog) -> Referenced {
        let named = catalog.models().filter_map(|model| request_of(&model.definition).sha256);
        let blobs = self.files(catalog).into_keys().chain(named).collect();
        Referenced { blobs, sources: self.pulls.coming(catalog) }
    }

    /// Forgets what sources turned out to be whose files are gone and that no manifest names.
    fn forget_gone(&self, catalog: &Catalog) -> Result<(), StoreError> {
        let named: BTreeSet<Key> =
            catalog.models().map(|model| key_of(&request_of(&model.definition))).collect();
        let is_there = |record: &Record| {
            let mut files = record.files().iter();
            !record.files().is_empty() && files.all(|file| self.blobs.find(&file.sha256).is_some())
        };
        let is_wanted = |record: &Record| named.contains(&record.key()) || is_there(record);
        Ok(self.pulls.sources().retain(is_wanted)?)
    }
}

/// Bytes that the disk gets back with a blob, as far as that is known.
fn freed_with(blob: &Blob) -> u64 {
    match blob.info.kept {
        Kept::Own => blob.size_bytes,
        // Another has them too, for all that is known.
        Kept::Clone | Kept::HardLink | Kept::Reference => 0,
    }
}
