"""Run folders, results, provenance, tables, hashes, the cache and downloads."""
