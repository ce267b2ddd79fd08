%% SPDX-License-Identifier: Apache-2.0
%% What is known of OTP and Elixir without their modules.
-module(scope_mark_known).
-export([call/1, is_preloaded/1, behaviours/0, is_unmarkable/1, returns/1, is_loop/1]).

-type fa() :: scope_mark_code:fa().

%% What a tail call of an imported function is. Of a BIF (`returns') the loader itself makes a call and a return
%% (erts/emulator/beam/jit/x86/ops.tab, call_ext_only); some BIFs raise or stop (`raises'), or give the process to another
%% function for good (`hands_over').
-spec call(scope_mark_code:import()) -> returns | raises | hands_over | away.
call({<<"erlang">>, F, _} = Import) ->
    case {lists:member(F, raising()), lists:member(F, [<<"apply">>, <<"yield">>]), F} of
        {true, _, _} -> raises;
        {_, true, _} -> away;
        {_, _, <<"hibernate">>} -> hands_over;
        _ -> bif(Import)
    end;
call({<<"proc_lib">>, <<"hibernate">>, _}) -> hands_over;
call({_, <<"enter_loop">>, _}) -> hands_over;
call(Import) -> bif(Import).

bif({M, F, A}) ->
    case lists:member({F, A}, scope_mark_tables:bifs(M)) of
        true -> returns;
        false -> away
    end.

raising() ->
    [<<"error">>, <<"exit">>, <<"throw">>, <<"raise">>, <<"nif_error">>, <<"halt">>, <<"load_nif">>,
     <<"call_on_load_function">>].

-spec is_preloaded(binary()) -> boolean().
is_preloaded(Module) -> lists:member(Module, scope_mark_tables:preloaded()).

%% Functions that the compiler makes.
-spec is_unmarkable(fa()) -> boolean().
is_unmarkable({<<"module_info">>, A}) -> A < 2;
is_unmarkable({<<"__info__">>, 1}) -> true;
is_unmarkable(_) -> false.

%% Callbacks whose caller goes on only when they have returned: those of OTP's processes, and of behaviours with the same
%% names (gen_server2, ranch and others). A chain of tail calls from one of them ends with its answer.
-spec returns(fa()) -> boolean().
returns(Function) -> is_map_key(Function, returning()).

returning() ->
    #{{<<"init">>, 1} => 1, {<<"handle_call">>, 2} => 1, {<<"handle_call">>, 3} => 1, {<<"handle_cast">>, 2} => 1,
      {<<"handle_info">>, 2} => 1, {<<"handle_info">>, 3} => 1, {<<"handle_continue">>, 2} => 1,
      {<<"handle_event">>, 2} => 1, {<<"handle_event">>, 3} => 1, {<<"handle_event">>, 4} => 1,
      {<<"handle_sync_event">>, 4} => 1, {<<"handle_events">>, 3} => 1, {<<"handle_demand">>, 2} => 1,
      {<<"terminate">>, 2} => 1, {<<"terminate">>, 3} => 1, {<<"code_change">>, 3} => 1, {<<"code_change">>, 4} => 1,
      {<<"start">>, 2} => 1, {<<"stop">>, 1} => 1, {<<"prep_stop">>, 1} => 1, {<<"config_change">>, 3} => 1}.

%% Callbacks that are the loop of a process or lead back into it.
-spec is_loop(fa()) -> boolean().
is_loop({<<"system_", _/binary>>, _}) -> true;
is_loop(_) -> false.

-spec behaviours() -> #{binary() => [fa()]}.
behaviours() ->
    Server = [{<<"init">>, 1}, {<<"handle_call">>, 3}, {<<"handle_cast">>, 2}, {<<"handle_info">>, 2},
              {<<"handle_continue">>, 2}, {<<"terminate">>, 2}, {<<"code_change">>, 3}, {<<"format_status">>, 1},
              {<<"format_status">>, 2}],
    Event = [{<<"init">>, 1}, {<<"handle_call">>, 2}, {<<"handle_event">>, 2}, {<<"handle_info">>, 2},
             {<<"terminate">>, 2}, {<<"code_change">>, 3}, {<<"format_status">>, 1}, {<<"format_status">>, 2}],
    Statem = [{<<"init">>, 1}, {<<"callback_mode">>, 0}, {<<"handle_event">>, 4}, {<<"terminate">>, 3},
              {<<"code_change">>, 4}, {<<"format_status">>, 1}, {<<"format_status">>, 2}, {<<"StateName">>, 3}],
    Fsm = [{<<"StateName">>, 2}, {<<"StateName">>, 3}, {<<"init">>, 1}, {<<"handle_event">>, 3}, {<<"handle_sync_event">>, 4}, {<<"handle_info">>, 3},
           {<<"terminate">>, 3}, {<<"code_change">>, 4}, {<<"format_status">>, 2}],
    Application = [{<<"start">>, 2}, {<<"stop">>, 1}, {<<"prep_stop">>, 1}, {<<"start_phase">>, 3},
                   {<<"config_change">>, 3}],
    Init = [{<<"init">>, 1}],
    #{<<"gen_server">> => Server,
      <<"gen_event">> => Event,
      <<"gen_statem">> => Statem,
      <<"gen_fsm">> => Fsm,
      <<"supervisor">> => Init,
      <<"supervisor_bridge">> => [{<<"init">>, 1}, {<<"terminate">>, 2}],
      <<"application">> => Application,
      <<"sys">> => [],
      <<"logger_handler">> =>
          [{<<"log">>, 2}, {<<"adding_handler">>, 1}, {<<"changing_config">>, 3}, {<<"filter_config">>, 1},
           {<<"removing_handler">>, 1}],
      <<"logger_formatter">> => [{<<"format">>, 2}, {<<"check_config">>, 1}],
      <<"Elixir.GenServer">> => Server,
      <<"Elixir.GenEvent">> => Event,
      <<"Elixir.Supervisor">> => Init,
      <<"Elixir.DynamicSupervisor">> => Init,
      <<"Elixir.Application">> => Application,
      <<"Elixir.Access">> => [{<<"fetch">>, 2}, {<<"get_and_update">>, 3}, {<<"pop">>, 2}],
      <<"Elixir.GenStage">> =>
          Server ++ [{<<"handle_demand">>, 2}, {<<"handle_events">>, 3}, {<<"handle_subscribe">>, 4},
                     {<<"handle_cancel">>, 3}]}.
