"""The ground floor: errors, ids, disk, rules of texts, sound, processes, settings. Imports nothing of the house."""
