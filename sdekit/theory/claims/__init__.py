"""The claims of sdekit, one module per topic; importing a module registers its claims."""
