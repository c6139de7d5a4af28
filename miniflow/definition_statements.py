"""The SQL of kept definitions of workflows, by name. The rules are those of ``statements``."""

from __future__ import annotations

# The fields of workflow_catalog.Kept, in order.
KEPT = "name, version, definition, source, origin, created_at"

NEWEST_DEFINITIONS = f"""
SELECT {KEPT} FROM workflow_definitions d WHERE version = (SELECT max(version) FROM workflow_definitions WHERE name = d.name)
"""
NEWEST_OF_NAME = f"SELECT {KEPT} FROM workflow_definitions WHERE name = ?1 ORDER BY version DESC LIMIT 1"
VERSION_OF_NAME = f"SELECT {KEPT} FROM workflow_definitions WHERE name = ?1 AND version = ?2"
VERSIONS_OF_NAME = f"SELECT {KEPT} FROM workflow_definitions WHERE name = ?1 ORDER BY version DESC LIMIT ?2"
HOW_MANY_NAMES = "SELECT count(DISTINCT name) FROM workflow_definitions"
INSERT_VERSION = """
INSERT INTO workflow_definitions (name, version, definition, source, origin, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
"""
SET_ORIGIN = "UPDATE workflow_definitions SET source = ?3, origin = ?4 WHERE name = ?1 AND version = ?2"
DELETE_DEFINITION = "DELETE FROM workflow_definitions WHERE name = ?1"
"""With all its versions."""
