"""ONNX graphs as torch networks: read as data, with parameters and sites of their own.

``reading`` opens a file, ``building`` goes through its nodes, ``operators`` says what each becomes,
and ``network`` runs what came of it.
"""
