"""The server: an OpenAI-compatible API over the engine's service, and the same answers for a file of requests.

A request is parsed (`requests`), written out as tokens (`prompts`), handed to the engine's service (`generation`), and
its tokens become text without stop strings (`answers`), tool calls (`tools`) and JSON of OpenAI's shape (`chat`,
`completions`). `app` is the HTTP around that, `batch` the file.
"""
