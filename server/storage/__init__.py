"""Where the server keeps the bundles it fetches."""
