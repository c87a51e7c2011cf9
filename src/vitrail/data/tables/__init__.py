"""Images in the rows of Parquet files and of data sets of the Hugging Face Hub."""
