"""The study of methods: cells, one child process for each, a report from whatever results there are."""
