"""What things are called in the dialects: one row a thing, its names after the colon.

The first name that a record has is taken; capitals, dots, dashes and underscores do
not matter. A row is reached as `N.time`. Add the names of your own logs here.
"""

import re
from types import SimpleNamespace

_TABLE = """
time: time timestamp start_time start_time_unix_nano start_timestamp request_created_at
  created_at created started_at start datetime date ts request_time request_timestamp
  logged_at time_unix_nano
end: end_time end_time_unix_nano end_timestamp response_created_at ended_at end
  finished_at completed_at
took: latency duration response_time delay elapsed elapsed_time total_time total_latency
  request_duration execution_time
trace_id: trace_id request_id x_request_id litellm_call_id call_id log_id uuid id
session_id: gen_ai.conversation.id session_id conversation_id thread_id chat_id session
  helicone_session_id langfuse.session.id ai.telemetry.metadata.sessionId
  traceloop.association.properties.session_id
user_id: user_id end_user request_user_id end_user_id enduser.id langfuse.user.id
  user_api_key_end_user_id ai.telemetry.metadata.userId
  traceloop.association.properties.user_id user safety_identifier
feedback: feedback user_feedback feedback_rating rating thumbs verdict scores
  feedback_stats
said: verdict rating value score thumbs avg string_value label
metadata: metadata properties request_properties extra
error: error exception error_message error_str error_information
status: status_code response_status http_status response_code status
request: request request_body req raw_request
response: response response_body res raw_response response_obj
envelope: data observations runs rows items traces results records logs requests spans
  events hits log trace message msg jsonPayload payload _source event body record
  standard_logging_object run span kwargs examples row

chat: messages input_messages conversations conversation
weak_chat: prompt_messages chat_history input inputs prompt prompts question query
  instruction user_input user_message
system: system instructions system_instruction system_prompt system_message
reply: response output outputs completion answer reply output_text chosen
  preferred_output
weak_reply: result text generated_text message
finish: finish_reason stop_reason
tools: tools functions
arguments: arguments args input parameters action queries code
result: content response result output
call_id: tool_use_id call_id tool_call_id id
tool_name: name tool_name

settings: model temperature top_p top_k max_tokens seed stop max_completion_tokens
  max_output_tokens n frequency_penalty presence_penalty response_format text reasoning
  verbosity reasoning_effort tool_choice parallel_tool_calls logprobs top_logprobs
  logit_bias service_tier store stream previous_response_id prompt_cache_key thinking
  stop_sequences
no_settings: api_key headers extra_headers extra_body authorization

usage: usage usage_details usage_metadata token_usage token_counts metrics
sent: input_tokens prompt_tokens input prompt input_usage tokens_in request_tokens
  prompt_eval_count
got: output_tokens completion_tokens output completion output_usage tokens_out
  response_tokens generated_tokens eval_count
total: total_tokens total total_usage
read: cache_read_input_tokens cached_tokens cache_read cache_read_tokens
  cached_input_tokens input_tokens_cached cache_hit_tokens cache_input
wrote: cache_creation_input_tokens cache_write_tokens cache_write cache_creation
  cache_creation_tokens input_tokens_cache_write cache_write_input_tokens
thought: reasoning_tokens reasoning reasoning_output_tokens output_tokens_reasoning

llm_kind: chat generate_content text_completion completion llm generation
  ai.generateText.doGenerate ai.streamText.doStream ai.generateObject.doGenerate
  ai.streamObject.doStream
tool_kind: tool execute_tool ai.toolCall
outer_kind: chain agent span task workflow invoke_agent ai.generateText ai.streamText
  ai.generateObject ai.streamObject create_agent invoke_workflow
no_kind: event retriever embedding embeddings retrieval rerank reranker guardrail
  evaluator prompt parser ai.embed.doEmbed ai.embedMany.doEmbed ai.embed ai.embedMany
  unknown
kind: gen_ai.operation.name openinference.span.kind llm.request.type ai.operationId
  langfuse.observation.type traceloop.span.kind
span_in: gen_ai.input.messages gen_ai.prompt llm.input_messages llm.prompts
  ai.prompt.messages ai.prompt langfuse.observation.input request_data
  traceloop.entity.input input.value
span_out: gen_ai.output.messages gen_ai.completion llm.output_messages llm.completions
  llm.choices ai.response.text ai.response.object langfuse.observation.output
  response_data traceloop.entity.output output.value
span_bulk: ai.response. ai.toolCall. input. output. llm.tools llm.request.functions
  langfuse.trace. tool. llm.invocation_parameters llm.prompt_template
  gen_ai.system_instructions gen_ai.tool.definitions
tool: gen_ai.tool.name tool.name ai.toolCall.name traceloop.entity.name
tool_in: gen_ai.tool.call.arguments ai.toolCall.args ai.toolCall.input
  langfuse.observation.input traceloop.entity.input input.value tool.parameters
tool_out: gen_ai.tool.call.result ai.toolCall.result ai.toolCall.output
  langfuse.observation.output traceloop.entity.output output.value
model: gen_ai.request.model llm.request.model llm.model_name ai.model.id
span_ends: gen_ai.response.finish_reasons ai.response.finishReason
response_model: gen_ai.response.model ai.response.model
provider: gen_ai.provider.name gen_ai.system llm.provider llm.system llm.vendor
  ai.model.provider
"""
_ROWS = [row.partition(":") for row in re.split(r"\n+(?=\w)", _TABLE.strip())]
N = SimpleNamespace(**{name: tuple(words.split()) for name, _, words in _ROWS})
