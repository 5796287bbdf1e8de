"""A TinySeek model in the formats that others run: transformers, GGUF (llama.cpp, Ollama), plain safetensors."""
