//! What Hugging Face and Ollama's registry answer about their files.

use bytes::Bytes;
use serde_json::json;

use super::Origin;

/// A layer of a model in an Ollama registry.
#[derive(Debug, Clone)]
pub struct Layer<'a> {
    /// Its media type.
    pub media_type: &'a str,
    /// What is in it.
    pub bytes: &'a [u8],
    /// Hash of what is in it, as 64 hexadecimal digits.
    pub sha256: &'a str,
}

impl Origin {
    /// Puts a large file into a repository of Hugging Face (`org/name`), on the branch `main`.
    pub fn hugging_face_file(
        &self,
        repository: &str,
        path: &str,
        bytes: impl Into<Bytes>,
        sha256: &str,
    ) {
        let bytes = bytes.into();
        let headers = vec![
            ("x-linked-size", bytes.len().to_string()),
            ("x-linked-etag", format!("\"{sha256}\"")),
            ("x-repo-commit", "0123456789abcdef0123456789abcdef01234567".to_owned()),
        ];
        let etag = Some(format!("\"{sha256}\""));
        let at = format!("/{repository}/resolve/main/{path}");
        self.put(&at, bytes, etag, "application/octet-stream", headers);
    }

    /// Says which large files a repository of Hugging Face has: path, hash and size of each. The list
    /// has pages of two entries.
    pub fn hugging_face_tree(&self, repository: &str, files: &[(&str, &str, u64)]) {
        let entry = |(path, sha256, size): &(&str, &str, u64)| {
            let lfs = json!({"oid": sha256, "size": size, "pointerSize": 135});
            json!({"type": "file", "oid": "aa", "size": size, "path": path, "lfs": lfs})
        };
        let mut entries: Vec<_> = files.iter().map(entry).collect();
        entries.push(json!({"type": "file", "oid": "bb", "size": 7, "path": "README.md"}));
        entries.push(json!({"type": "directory", "oid": "cc", "size": 0, "path": "images"}));
        let at = |page: usize| match page {
            0 => format!("/api/models/{repository}/tree/main"),
            page => format!("/pages/{repository}/{page}"),
        };
        let pages: Vec<_> = entries.chunks(2).collect();
        for (page, entries) in pages.iter().enumerate() {
            let next = format!("<{}>; rel=\"next\"", self.url(&at(page + 1)));
            let link = if page + 1 < pages.len() { vec![("link", next)] } else { Vec::new() };
            let text = json!(entries).to_string();
            self.put(&at(page), text.into(), None, "application/json", link);
        }
    }

    /// Puts a model (`namespace/name`, and a tag) and its layers into an Ollama registry.
    pub fn ollama_model(&self, model: &str, tag: &str, layers: &[Layer<'_>]) {
        for layer in layers {
            let at = format!("/v2/{model}/blobs/sha256:{}", layer.sha256);
            self.file(&at, Bytes::copy_from_slice(layer.bytes));
        }
        let entry = |layer: &Layer<'_>| {
            json!({
                "mediaType": layer.media_type,
                "digest": format!("sha256:{}", layer.sha256),
                "size": layer.bytes.len(),
            })
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": format!("sha256:{}", "0".repeat(64)),
                "size": 2,
            },
            "layers": layers.iter().map(entry).collect::<Vec<_>>(),
        });
        let at = format!("/v2/{model}/manifests/{tag}");
        let kind = "application/vnd.docker.distribution.manifest.v2+json";
        self.put(&at, manifest.to_string().into(), None, kind, Vec::new());
    }
}
