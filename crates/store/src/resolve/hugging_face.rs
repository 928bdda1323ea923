//! Hugging Face: the hash of a large file is in the headers of its address, and in the list of
//! files of its repository.

use m40_gguf::split::shard_names;
use serde::Deserialize;
use url::Url;

use super::{Found, Remote, answer, below, parse};
use crate::client::{Client, check_status};
use crate::download::error::FetchError;
use crate::sha256::Sha256;
use crate::source::{HuggingFace, Pick, Source};

/// Most pages of a list of files; the registry puts a thousand on each.
const PAGES_MAX: usize = 20;
/// Most names in an error.
const NAMES_SHOWN_MAX: usize = 40;

pub(super) async fn resolve(
    client: &Client,
    base: &Url,
    wanted: &HuggingFace,
) -> Result<Found, FetchError> {
    match wanted.pick() {
        Pick::File(path) => Ok(file(client, file_url(base, wanted, path)?, path).await?.into()),
        Pick::Quantization(name) => quantization(client, base, wanted, name).await,
    }
}

pub(super) fn file_url(base: &Url, wanted: &HuggingFace, path: &str) -> Result<Url, FetchError> {
    let repository = wanted.repository();
    let folders = repository.split('/').chain(["resolve"]);
    below(base, folders.chain(wanted.revision().split('/')).chain(path.split('/')))
}

async fn file(client: &Client, url: Url, path: &str) -> Result<Remote, FetchError> {
    let response = client.head_here(&url).await?;
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    // Only files that are kept outside of the repository have these.
    let tag = header("x-linked-etag").map(|tag| tag.trim_matches('"'));
    let sha256 = tag.and_then(|tag| Sha256::from_digest(tag).ok());
    let size_bytes = header("x-linked-size").and_then(|size| size.parse().ok());
    let is_elsewhere = response.status().is_redirection();
    if !is_elsewhere {
        check_status(response, &url)?;
    }
    let name = path.rsplit('/').next().unwrap_or(path).to_owned();
    Ok(Remote { name, url, sha256, size_bytes })
}

#[derive(Debug, Deserialize)]
struct Entry {
    path: String,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    oid: Sha256,
    size: u64,
}

async fn quantization(
    client: &Client,
    base: &Url,
    wanted: &HuggingFace,
    name: &str,
) -> Result<Found, FetchError> {
    let repository = wanted.repository();
    let folders = ["api", "models"].into_iter().chain(repository.split('/')).chain(["tree"]);
    let mut url = below(base, folders.chain(wanted.revision().split('/')))?;
    url.set_query(Some("recursive=true"));
    let entries = entries(client, &url).await?;
    let paths: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    let chosen = choose(&paths, name).map_err(|reason| FetchError::NotThere {
        source_text: Source::HuggingFace(wanted.clone()).to_string(),
        reason,
    })?;
    let mut files = Vec::with_capacity(chosen.len());
    for path in chosen {
        let entry = entries.iter().find(|entry| entry.path == path);
        let Some(lfs) = entry.and_then(|entry| entry.lfs.as_ref()) else {
            return Err(answer(&url, format!("there is no hash of {path}")));
        };
        files.push(Remote {
            name: path.rsplit('/').next().unwrap_or(&path).to_owned(),
            url: file_url(base, wanted, &path)?,
            sha256: Some(lfs.oid),
            size_bytes: Some(lfs.size),
        });
    }
    Ok(Found { files, ollama: None })
}

/// All files of a repository.
async fn entries(client: &Client, url: &Url) -> Result<Vec<Entry>, FetchError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut next = Some(url.clone());
    for _ in 0..PAGES_MAX {
        let Some(url) = next else { return Ok(entries) };
        let (text, following) = client.page(&url, &[]).await?;
        entries.append(&mut parse(&url, &text)?);
        next = following;
    }
    Err(answer(url, format!("the repository has more than {PAGES_MAX} pages of files")))
}

/// The files of a quantization: one, or all of a split. Else what there is.
fn choose(paths: &[&str], quantization: &str) -> Result<Vec<String>, String> {
    let is_model = |path: &&&str| path.ends_with(".gguf") && !path.contains("mmproj");
    let models: Vec<&str> = paths.iter().filter(is_model).copied().collect();
    let found: Vec<&str> =
        models.iter().copied().filter(|path| names(path, quantization)).collect();
    let Some(first) = found.first() else {
        let shown: Vec<&str> = models.iter().take(NAMES_SHOWN_MAX).copied().collect();
        return Err(match shown.as_slice() {
            [] => "the repository has no GGUF files".to_owned(),
            shown => format!("the repository has {}", shown.join(", ")),
        });
    };
    let (folder, name) =
        first.rsplit_once('/').map_or(("", *first), |(folder, name)| (folder, name));
    let in_folder = |name: String| match folder {
        "" => name,
        folder => format!("{folder}/{name}"),
    };
    let wanted: Vec<String> = match shard_names(name) {
        Some(shards) => shards.into_iter().map(in_folder).collect(),
        None => vec![(*first).to_owned()],
    };
    if let Some(missing) = wanted.iter().find(|path| !found.contains(&path.as_str())) {
        return Err(format!("the repository has no {missing}"));
    }
    if wanted.len() != found.len() {
        let shown: Vec<&str> = found.iter().take(NAMES_SHOWN_MAX).copied().collect();
        return Err(format!("several files have that name, name one: {}", shown.join(", ")));
    }
    Ok(wanted)
}

/// Whether a file's own name has this quantization in it, and not only as a piece of another's.
fn names(path: &str, quantization: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let wanted = quantization.to_ascii_lowercase();
    let is_apart = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_');
    name.match_indices(&wanted).any(|(at, _)| {
        is_apart(name[..at].chars().next_back())
            && is_apart(name[at + wanted.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantization_is_one_file_or_a_whole_split() {
        let paths = [
            "README.md",
            "m-Q4_K_M.gguf",
            "m-Q4_K_S.gguf",
            "mmproj-m-Q8_0.gguf",
            "Q8_0/m-Q8_0-00001-of-00002.gguf",
            "Q8_0/m-Q8_0-00002-of-00002.gguf",
            "m-IQ4_XS.gguf",
        ];
        assert_eq!(choose(&paths, "q4_k_m").unwrap(), ["m-Q4_K_M.gguf"]);
        assert_eq!(
            choose(&paths, "Q8_0").unwrap(),
            ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"]
        );
        let none = choose(&paths, "Q4_K").unwrap_err();
        assert!(none.contains("m-Q4_K_M.gguf") && !none.contains("mmproj"), "{none}");
        assert!(choose(&paths, "Q4_XS").is_err());
        assert!(choose(&paths[..5], "Q8_0").unwrap_err().contains("00002-of-00002"));
        let two = choose(&["a-F16.gguf", "b-F16.gguf"], "F16").unwrap_err();
        assert!(two.contains("several"), "{two}");
        assert!(choose(&["README.md"], "F16").unwrap_err().contains("no GGUF"));
    }
}
