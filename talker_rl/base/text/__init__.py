"""The rules of texts, each in one place: what can be seen, what is a word, where a sentence ends, which marks ask for a
pause, when two texts are the same, what recognizers do not write. By Unicode's properties and NFKC; no model, no file.
"""
