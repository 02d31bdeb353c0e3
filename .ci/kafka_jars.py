"""Print worker/embedded/kafka_jars.txt: every jar of one Kafka release, with its SHA-256.

Run by `make kafka-jars`; the argument is the version.
"""

import hashlib
import sys
import tempfile
from pathlib import Path

from jgo.maven import MavenContext


def main(version: str) -> None:
    """Resolve, download and print."""
    with tempfile.TemporaryDirectory() as folder:
        maven = MavenContext(repo_cache=Path(folder))
        kafka = maven.create_dependency(f"org.apache.kafka:kafka_2.13:{version}")
        _, parts = maven.resolver.resolve([kafka])
        log4j = next(part.version for part in parts if part.artifactId == "log4j-core")
        # Without a binding SLF4J drops Kafka's log, and with it the reason of a failed start.
        binding = maven.create_dependency(f"org.apache.logging.log4j:log4j-slf4j-impl:{log4j}")
        for part in [kafka, binding, *sorted(parts, key=lambda part: part.artifact.key)]:
            digest = hashlib.sha256(part.artifact.resolve().read_bytes()).hexdigest()
            print(f"{part.groupId}:{part.artifactId}:{part.version} {digest}")


if __name__ == "__main__":
    main(*sys.argv[1:])
