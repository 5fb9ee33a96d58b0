"""Options, from keywords, YAML files and the environment."""
