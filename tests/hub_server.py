"""A small Hub on this machine.

The endpoints that the real client needs to create, commit and download, and faults on demand.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")  # what the Hub takes for the name of a base model


class Hub(ThreadingHTTPServer):
    """Serves on a free port from a thread. Use as a context manager.

    Attributes:
        users: {token: {"name", "orgs": [...], "role": "write" or "read"}}.
        repos: {"namespace/name": {"private": bool, "branches": {name: {path: bytes}}}}.
        faults: [(method, pattern of the path, what happens)], each for one request: a status, or "reset" or "cut", which close
            the connection while the client sends, or after half of the answer.
        requests: [(method, path, status)] of all that was asked.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.users = {
            "hf_writer": {"name": "me", "orgs": [{"name": "lab", "roleInOrg": "write"}], "role": "write"},
            "hf_reader": {"name": "me", "orgs": [], "role": "read"},
        }
        self.repos, self.faults, self.requests = {}, [], []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def put(self, repo: str, folder=None, private: bool = False) -> None:
        """A repository with the files of a folder."""
        files = (
            {f.relative_to(folder).as_posix(): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()} if folder else {}
        )
        self.repos[repo] = {"private": private, "branches": {"main": files}}

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.repos[repo]["branches"][branch]

    def handle_error(self, request, client_address):
        pass  # clients that were cut off


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_GET

    # ------------------------------------------------------------------------------------------------- requests and answers

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        fault = next((f for f in self.server.faults if f[0] == self.command and re.search(f[1], path)), None)
        if fault:
            self.server.faults.remove(fault)
            if fault[2] == "reset":
                self.server.requests.append((self.command, path, "reset"))
                self.rfile.read(10)
                self.close_connection = True
                return self.connection.close()
        body = self.body()
        if fault and fault[2] != "cut":
            return self.send(path, fault[2], {"error": "a fault"})
        self.cut = bool(fault)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        user = self.server.users.get(token)
        if token and user is None:
            return self.send(path, 401, {"error": "Invalid credentials in Authorization header"})
        for method, pattern, reply in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return self.send(path, *reply(self, user, body, *match.groups()))
        self.send(path, 404, {"error": "no such endpoint"})

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, path, status, content, headers=()):
        self.server.requests.append((self.command, path, status))
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            if getattr(self, "cut", False):
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                self.connection.close()
            else:
                self.wfile.write(data)

    # ---------------------------------------------------------------------------------------------------------- endpoints

    def whoami(self, user, body):
        if user is None:
            return 401, {"error": "no token"}
        return 200, {
            "type": "user",
            "name": user["name"],
            "orgs": user["orgs"],
            "auth": {"accessToken": {"role": user["role"]}},
        }

    def create(self, user, body):
        wanted = json.loads(body)
        repo = f"{wanted.get('organization') or (user and user['name'])}/{wanted['name']}"
        if not self.may_write(user, repo):
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        if repo in self.server.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.server.url}/{repo}"}
        self.server.put(repo, private=wanted.get("visibility") == "private" or wanted.get("private", False))
        return 200, {"url": f"{self.server.url}/{repo}"}

    def validate_yaml(self, user, body):
        found = re.match(r"---\n(.*?)\n---", json.loads(body)["content"], re.S)
        data, errors = yaml.safe_load(found[1]) if found else {}, []
        bases = data.get("base_model", [])
        for base in [bases] if isinstance(bases, str) else bases:
            if not REPO_ID.fullmatch(base):
                errors.append(f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.')
        for entry in data.get("model-index", []):
            for result in entry["results"]:
                if not {"task", "dataset", "metrics"} <= result.keys() or not {"type", "name"} <= result["dataset"].keys():
                    errors.append('"model-index" lacks a task, dataset or metrics')
                errors += ['"value" is no number' for m in result["metrics"] if not isinstance(m["value"], (int, float))]
        return 400 if errors else 200, {"errors": [{"message": e} for e in errors], "warnings": []}

    def branch(self, user, body, repo, branch):
        if not self.may_write(user, repo):
            return 403, {"error": "forbidden"}
        branches = self.server.repos[repo]["branches"]
        if branch in branches:
            return 409, {"error": "Reference already exists"}
        branches[branch] = dict(branches["main"])
        return 200, {}

    def preupload(self, user, body, repo, branch):
        if repo not in self.server.repos:
            return self.missing("RepoNotFound")
        if not self.may_write(user, repo):
            return 403, {"error": "Forbidden: pass the rights to write"}
        files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
        return 200, {"files": files}

    def commit(self, user, body, repo, branch):
        if not self.may_write(user, repo):
            return 403, {"error": "Forbidden: pass the rights to write"}
        files = self.server.files(repo, branch)
        for line in filter(None, body.splitlines()):
            item = json.loads(line)
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        oid = self.oid(files)
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}", "hookOutput": ""}

    def info(self, user, body, repo, branch=None):
        if not self.may_read(user, repo):
            return self.missing("RepoNotFound")
        branch = self.branch_of(repo, branch or "main")
        if branch is None:
            return self.missing("RevisionNotFound")
        files = self.server.files(repo, branch)
        names = [{"rfilename": name} for name in files]
        return 200, {"id": repo, "modelId": repo, "sha": self.oid(files), "siblings": names, "private": False, "tags": []}

    def tree(self, user, body, repo, branch):
        if not self.may_read(user, repo):
            return self.missing("RepoNotFound")
        files = self.server.files(repo, self.branch_of(repo, branch)).items()
        return 200, [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in files]

    def resolve(self, user, body, repo, branch, name):
        if not self.may_read(user, repo):
            return self.missing("RepoNotFound")
        branch = self.branch_of(repo, branch)
        if branch is None:
            return self.missing("RevisionNotFound")
        files = self.server.files(repo, branch)
        commit = {"X-Repo-Commit": self.oid(files)}
        if name not in files:
            return self.missing("EntryNotFound", commit)
        return 200, files[name], commit | {"ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"'}

    # ------------------------------------------------------------------------------------------------------------- helpers

    def may_write(self, user, repo):
        return (
            bool(user) and user["role"] == "write" and repo.split("/")[0] in {user["name"], *(o["name"] for o in user["orgs"])}
        )

    def may_read(self, user, repo):
        return repo in self.server.repos and (not self.server.repos[repo]["private"] or self.may_write(user, repo))

    def branch_of(self, repo, revision):
        """A branch by its name or by the commit that it is at."""
        branches = self.server.repos[repo]["branches"]
        return next((name for name, files in branches.items() if revision in (name, self.oid(files))), None)

    @staticmethod
    def oid(files):
        return hashlib.sha1(b"".join(k.encode() + b"\0" + v for k, v in sorted(files.items()))).hexdigest()

    @staticmethod
    def missing(code, headers=None):
        return 404, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code} | (headers or {})


REPO = r"([^/]+/[^/]+)"
ROUTES = [
    (("GET",), "/api/whoami-v2", Handler.whoami),
    (("POST",), "/api/repos/create", Handler.create),
    (("POST",), "/api/validate-yaml", Handler.validate_yaml),
    (("POST",), f"/api/models/{REPO}/branch/(.+)", Handler.branch),
    (("POST",), f"/api/models/{REPO}/preupload/(.+)", Handler.preupload),
    (("POST",), f"/api/models/{REPO}/commit/(.+)", Handler.commit),
    (("GET",), f"/api/models/{REPO}", Handler.info),
    (("GET",), f"/api/models/{REPO}/revision/(.+)", Handler.info),
    (("GET",), f"/api/models/{REPO}/tree/([^/]+).*", Handler.tree),
    (("GET", "HEAD"), f"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
]
