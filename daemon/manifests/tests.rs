//! Real files in real folders, as editors, package managers and orchestrators change them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use m40_manifest::Catalog;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;

/// How long a change may take to count; far more than it does.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A folder of manifests that is followed.
struct Followed {
    root: TempDir,
    manifests: Manifests,
    catalog: watch::Receiver<Arc<Catalog>>,
}

impl Followed {
    /// Follows `models.d`, which `prepare` may make in the folder it is given.
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        prepare(root.path());
        let manifests = Manifests::open(&root.path().join("models.d"));
        tokio::spawn(manifests.clone().follow());
        let catalog = manifests.subscribe();
        Self { root, manifests, catalog }
    }

    fn with_dir() -> Self {
        Self::new(|root| fs::create_dir(root.join("models.d")).expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
    }

    /// Waits for a catalog of which this is true.
    async fn until(&mut self, what: &str, is: impl Fn(&Catalog) -> bool) -> Arc<Catalog> {
        let found = timeout(TIMEOUT, self.catalog.wait_for(|catalog| is(catalog))).await;
        let found = found.map(|found| found.expect("the manifests are there").clone());
        found.unwrap_or_else(|_| panic!("never {what}: {:#?}", self.manifests.current()))
    }

    async fn until_names(&mut self, names: &[&str]) -> Arc<Catalog> {
        self.until(&format!("{names:?}"), |catalog| self::names(catalog) == names).await
    }

    async fn until_priority(&mut self, model: &str, priority: i32) {
        let is = |catalog: &Catalog| {
            catalog.find(model).is_some_and(|model| model.definition.priority == priority)
        };
        self.until(&format!("{model} with {priority}"), is).await;
    }

    async fn until_problem(&mut self, says: &str) -> Arc<Catalog> {
        let is = |catalog: &Catalog| {
            catalog.problems().iter().any(|problem| problem.to_string().contains(says))
        };
        self.until(says, is).await
    }
}

fn names(catalog: &Catalog) -> Vec<&str> {
    catalog.models().map(|model| model.definition.name.as_str()).collect()
}

fn manifest(priority: i32) -> String {
    format!("source = \"/m.gguf\"\npriority = {priority}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_counts_when_it_is_written_changed_and_removed() {
    let mut followed = Followed::with_dir();
    followed.write("models.d/a.toml", &manifest(1));
    followed.until_priority("a", 1).await;
    followed.write("models.d/a.toml", &manifest(2));
    followed.until_priority("a", 2).await;
    followed.write("models.d/b.toml", &manifest(3));
    followed.until_names(&["a", "b"]).await;
    fs::remove_file(followed.path("models.d/a.toml")).unwrap();
    followed.until_names(&["b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_editor_that_renames_over_the_file_is_followed() {
    let mut followed = Followed::with_dir();
    followed.write("models.d/a.toml", &manifest(1));
    followed.until_priority("a", 1).await;
    let (file, backup) = (followed.path("models.d/a.toml"), followed.path("models.d/a.toml~"));
    for priority in 2..6 {
        // As vim: the old one moves out of the way, a new one is written, the old one goes.
        followed.write("models.d/.a.toml.swp", "not a manifest");
        fs::rename(&file, &backup).unwrap();
        followed.write("models.d/a.toml", &manifest(priority));
        fs::remove_file(&backup).unwrap();
        followed.until_priority("a", priority).await;
        // As most others: written beside, renamed over.
        followed.write("models.d/a.toml.new", &manifest(priority + 10));
        fs::rename(followed.path("models.d/a.toml.new"), &file).unwrap();
        followed.until_priority("a", priority + 10).await;
    }
    assert!(followed.manifests.current().problems().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_file_does_not_count_while_it_is_written() {
    use std::io::Write;

    let mut followed = Followed::with_dir();
    let whole =
        "[[model]]\nname = \"a\"\nsource = \"/a\"\n[[model]]\nname = \"b\"\nsource = \"/b\"\n";
    followed.write("models.d/two.toml", whole);
    followed.until_names(&["a", "b"]).await;
    // The first half is a manifest in itself.
    let mut file = fs::File::create(followed.path("models.d/two.toml")).unwrap();
    file.write_all(&whole.as_bytes()[..whole.len() / 2]).unwrap();
    followed.write("models.d/c.toml", &manifest(1));
    let catalog = followed.until_names(&["a", "b", "c"]).await;
    assert_eq!(catalog.problems().len(), 1);
    assert!(catalog.problems()[0].to_string().contains("is being written"), "{catalog:?}");
    file.write_all(&whole.as_bytes()[whole.len() / 2..]).unwrap();
    writeln!(file, "priority = 7").unwrap();
    drop(file);
    followed.until_priority("b", 7).await;
    assert!(followed.manifests.current().problems().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_reload_does_not_wait_for_a_writer() {
    use std::io::Write;

    let followed = Followed::with_dir();
    let mut file = fs::File::create(followed.path("models.d/a.toml")).unwrap();
    file.write_all(manifest(1).as_bytes()).unwrap();
    let reload = followed.manifests.reload(false).await.unwrap();
    assert_eq!(reload.problems, []);
    assert_eq!(names(&followed.manifests.current()), ["a"]);
    drop(file);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_leaves_its_old_models_and_says_where_it_is_wrong() {
    let mut followed = Followed::with_dir();
    followed.write("models.d/a.toml", &manifest(1));
    followed.until_priority("a", 1).await;
    followed.write("models.d/a.toml", "source = \"/m.gguf\"\npriorty = 2\n");
    let catalog = followed.until_problem("a.toml:2:1: unknown key `priorty`").await;
    assert_eq!(catalog.find("a").unwrap().definition.priority, 1);
    followed.write("models.d/a.toml", "");
    let catalog = followed.until_problem("the file is empty").await;
    assert_eq!(names(&catalog), ["a"]);
    fs::write(followed.path("models.d/a.toml"), b"source = \"\xff\"").unwrap();
    followed.until_problem("is not UTF-8").await;
    fs::remove_file(followed.path("models.d/a.toml")).unwrap();
    fs::create_dir(followed.path("models.d/a.toml")).unwrap();
    followed.until_problem("is not a file").await;
    fs::remove_dir(followed.path("models.d/a.toml")).unwrap();
    nix::unistd::mkfifo(&followed.path("models.d/a.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    followed.until_problem("is not a file").await;
    fs::remove_file(followed.path("models.d/a.toml")).unwrap();
    followed.write("models.d/a.toml", &manifest(2));
    followed.until_priority("a", 2).await;
    assert!(followed.manifests.current().problems().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_may_come_later_go_and_come_again() {
    let mut followed = Followed::new(|_| ());
    assert!(followed.manifests.current().problems().is_empty(), "no folder is no mistake");
    let dir = followed.path("models.d");
    for round in 1..4 {
        fs::create_dir(&dir).unwrap();
        followed.write("models.d/a.toml", &manifest(round));
        followed.until_priority("a", round).await;
        // Written to the folder as it is now, not to one of that name that was there before.
        followed.write("models.d/a.toml", &manifest(round + 10));
        followed.until_priority("a", round + 10).await;
        fs::remove_dir_all(&dir).unwrap();
        let catalog = followed.until_problem("No such file or directory").await;
        assert_eq!(names(&catalog), ["a"], "without a folder what it said goes on");
    }
    // One that is moved into the place counts as well.
    fs::create_dir(followed.path("other")).unwrap();
    followed.write("other/b.toml", &manifest(1));
    fs::rename(followed.path("other"), &dir).unwrap();
    let catalog = followed.until_names(&["b"]).await;
    assert!(catalog.problems().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_of_the_folder_may_come_later_too() {
    let root = tempfile::tempdir().unwrap();
    let manifests = Manifests::open(&root.path().join("etc/m40d/models.d"));
    tokio::spawn(manifests.clone().follow());
    let catalog = manifests.subscribe();
    let mut followed = Followed { root, manifests, catalog };
    fs::create_dir_all(followed.path("etc/m40d/models.d")).unwrap();
    followed.write("etc/m40d/models.d/a.toml", &manifest(1));
    followed.until_priority("a", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_followed_to_files_and_folders() {
    let mut followed = Followed::new(|root| {
        fs::create_dir(root.join("one")).expect("a folder");
        fs::create_dir(root.join("elsewhere")).expect("a folder");
        symlink("one", root.join("models.d")).expect("a link");
    });
    // A manifest that is a link, to a link.
    followed.write("elsewhere/real.toml", &manifest(1));
    symlink("real.toml", followed.path("elsewhere/link.toml")).unwrap();
    symlink("../elsewhere/link.toml", followed.path("one/a.toml")).unwrap();
    followed.until_priority("a", 1).await;
    followed.write("elsewhere/real.toml", &manifest(2));
    followed.until_priority("a", 2).await;
    followed.write("elsewhere/new.toml", &manifest(3));
    symlink("new.toml", followed.path("elsewhere/swap")).unwrap();
    fs::rename(followed.path("elsewhere/swap"), followed.path("elsewhere/link.toml")).unwrap();
    followed.until_priority("a", 3).await;
    fs::remove_file(followed.path("elsewhere/new.toml")).unwrap();
    followed.until_problem("cannot read the file").await;
    followed.write("elsewhere/new.toml", &manifest(4));
    followed.until_priority("a", 4).await;
    // The folder is a link that is swapped.
    fs::create_dir(followed.path("two")).unwrap();
    followed.write("two/b.toml", &manifest(1));
    symlink("two", followed.path("swap")).unwrap();
    fs::rename(followed.path("swap"), followed.path("models.d")).unwrap();
    followed.until_names(&["b"]).await;
    followed.write("two/b.toml", &manifest(2));
    followed.until_priority("b", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_config_map_is_followed() {
    // Kubernetes: names are links through `..data`, itself a link, which is swapped.
    let mut followed = Followed::new(|root| {
        fs::create_dir_all(root.join("models.d/..1")).expect("a folder");
        symlink("..1", root.join("models.d/..data")).expect("a link");
        fs::write(root.join("models.d/..1/a.toml"), manifest(1)).expect("a file");
        symlink("..data/a.toml", root.join("models.d/a.toml")).expect("a link");
    });
    followed.until_priority("a", 1).await;
    for version in 2..5 {
        let (old, new) = (format!("models.d/..{}", version - 1), format!("models.d/..{version}"));
        fs::create_dir(followed.path(&new)).unwrap();
        followed.write(&format!("{new}/a.toml"), &manifest(version));
        symlink(format!("..{version}"), followed.path("models.d/..data_tmp")).unwrap();
        fs::rename(followed.path("models.d/..data_tmp"), followed.path("models.d/..data")).unwrap();
        fs::remove_dir_all(followed.path(&old)).unwrap();
        followed.until_priority("a", version).await;
    }
    assert!(followed.manifests.current().problems().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_beside_the_manifests_is_followed() {
    let mut followed = Followed::with_dir();
    let text = "source = \"/m.gguf\"\ntemplate = { file = \"../templates/t.jinja\" }\n";
    followed.write("models.d/a.toml", text);
    followed.until_problem("t.jinja: cannot read the file").await;
    fs::create_dir(followed.path("templates")).unwrap();
    followed.write("templates/t.jinja", "{{ messages }}");
    let has = |wanted: &'static str| {
        move |catalog: &Catalog| {
            let model = catalog.find("a");
            let template = model.and_then(|model| model.definition.template.clone());
            template.is_some_and(|template| &*template.content == wanted)
        }
    };
    followed.until("a template", has("{{ messages }}")).await;
    followed.write("templates/t.jinja", "{{ messages }}!");
    followed.until("another template", has("{{ messages }}!")).await;
    followed.write("templates/t.jinja", "{{ messages");
    let catalog = followed.until_problem("the template is wrong").await;
    assert!(has("{{ messages }}!")(&catalog));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_files_at_once_all_count() {
    let mut followed = Followed::with_dir();
    for n in 0..200 {
        followed.write(&format!("models.d/m{n:03}.toml"), &manifest(1));
    }
    followed.until("200 models", |catalog| catalog.models().count() == 200).await;
    for n in 0..200 {
        followed.write(&format!("models.d/m{n:03}.toml"), &manifest(2));
    }
    let all = |catalog: &Catalog| catalog.models().all(|model| model.definition.priority == 2);
    followed.until("all changed", all).await;
    fs::remove_dir_all(followed.path("models.d")).unwrap();
    fs::create_dir(followed.path("models.d")).unwrap();
    followed.until_names(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_and_changes_nothing() {
    // Nothing follows this folder, so that only the reloads here count.
    let root = tempfile::tempdir().unwrap();
    let manifests = Manifests::open(&root.path().join("models.d"));
    fs::create_dir(root.path().join("models.d")).unwrap();
    fs::write(root.path().join("models.d/a.toml"), manifest(1)).unwrap();
    for _ in 0..2 {
        let told = manifests.reload(true).await.unwrap();
        assert!(told.dry_run && told.changes.len() == 1 && told.changes[0].model == "a");
        assert!(manifests.current().is_empty());
    }
    assert_eq!(manifests.reload(false).await.unwrap().changes.len(), 1);
    assert_eq!(names(&manifests.current()), ["a"]);
    assert_eq!(manifests.reload(false).await.unwrap().changes, []);
}
